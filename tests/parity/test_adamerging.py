"""adamerging against autograd and torch's Adam in float64, and what it may look at."""

import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from entropy_reference import EntropyReference
from torch import Tensor

import clipfuse.fusion.entropy as module_of_entropy
from clipfuse.errors import ConfigError
from clipfuse.fusion import task_arithmetic
from clipfuse.fusion.entropy import Watch, entropies
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.lent import Lent
from clipfuse.fusion.merge import look_at, merge
from clipfuse.fusion.merged import Merged
from clipfuse.fusion.mixture import Mixture
from clipfuse.fusion.registry import DeltaConfig, method
from clipfuse.fusion.streams import Run
from clipfuse.pool import PRETRAINED, HuggingFaceClipVisionPool, PoolView, pool_from_memory
from clipfuse.testing import TASKS, random_models, write_models
from clipfuse.testing.lender import RandomLender
from clipfuse.testing.models import SMALL

MODELS = random_models(0.3)
BATCH, LR = 4, 1e-3
FLAT = "k_proj.bias"
"""Softmax takes no notice of it: its gradient is rounding alone, which Adam makes a step of."""


def merged(data: RandomLender | None = RandomLender(), **settings: Any) -> Merged:
    return merge(pool_from_memory(MODELS, SMALL), {"name": "adamerging", "batch": BATCH, **settings}, data=data)


def view_of(models: Mapping[str, Mapping[str, Tensor]] = MODELS) -> PoolView:
    return look_at(pool_from_memory(models, SMALL), threads=1)


class Reference:
    """The loss by λ, through the merge."""

    def __init__(self, forward: Forward, lent: Lent, names: Sequence[str]):
        self.loss = EntropyReference(forward, lent, BATCH)
        base = MODELS[PRETRAINED]
        self.base = {name: base[name].double() for name in names}
        self.deltas = {
            name: torch.stack([(MODELS[task][name] - base[name]).double() for task in TASKS]) for name in names
        }

    def __call__(self, coefficients: Tensor, step: int) -> Tensor:
        """`coefficients` (parameter or 1, task)."""
        rows = zip(self.base, coefficients.expand(len(self.base), -1), strict=True)
        weights = {name: self.base[name] + torch.tensordot(row, self.deltas[name], 1) for name, row in rows}
        return self.loss(weights, step)

    def learn(self, coefficients: Tensor, steps: int) -> Tensor:
        learned = coefficients.double().requires_grad_(True)
        optimizer = torch.optim.Adam([learned], lr=LR)
        for step in range(steps):
            optimizer.zero_grad()
            self(learned, step).backward()
            optimizer.step()
        return learned.detach()


@pytest.fixture
def lent() -> Lent:
    return RandomLender().lend(TASKS, ("val_images",), 0)


@pytest.fixture
def run(lent: Lent) -> Iterator[Run]:
    with Run.open(view_of(), lent) as run:
        yield run


def test_entropies():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1e4, 0.0, -1e4, 0.0]])
    torch.testing.assert_close(entropies(logits), torch.tensor([4.0, 1.0]).log())


def test_the_gradient_is_that_of_central_differences(run: Run, lent: Lent):
    forward = Forward(run)
    mixture = Mixture(run.view, forward)
    assert sorted(mixture.names) == sorted(MODELS[PRETRAINED])
    coefficients = torch.rand(len(mixture.names), 3, generator=torch.Generator().manual_seed(3))
    mixture.spread(coefficients)
    for parameter in forward.parameters.values():
        parameter.requires_grad_(True)
    for task in TASKS:
        images = lent.images(task, "val")
        entropies(forward.logits(task, images.pixels(images.rows(5, BATCH)))).mean().backward()
    found = mixture.pull_back().double()
    loss, wide = Reference(forward, lent, mixture.names), coefficients.double()
    largest = found.abs().max()
    for row in torch.randperm(len(mixture.names), generator=torch.Generator().manual_seed(4))[:8].tolist():
        for column in range(3):
            step = torch.zeros_like(wide)
            step[row, column] = 1e-5
            slope = (loss(wide + step, 5) - loss(wide - step, 5)) / 2e-5
            assert abs(found[row, column] - slope) <= 1e-4 * abs(slope) + 1e-5 * largest, mixture.names[row]


@pytest.mark.parametrize("grain", ["layer", "task"])
def test_twenty_steps_are_those_of_autograd(run: Run, lent: Lent, grain: str):
    forward = Forward(run)
    rows = len(MODELS[PRETRAINED]) if grain == "layer" else 1
    wanted = (
        Reference(forward, lent, list(MODELS[PRETRAINED]))
        .learn(torch.full((rows, 3), 0.3), 20)
        .expand(len(MODELS[PRETRAINED]), -1)
    )
    assert (wanted - 0.3).abs().max() > 5e-3, "they have moved"
    found = merged(grain=grain, steps=20, lr=LR)
    for name, own, row in zip(MODELS[PRETRAINED], numbers_of(found), wanted, strict=True):
        if grain == "task" or not name.endswith(FLAT):
            torch.testing.assert_close(torch.tensor(own).double(), row, atol=1e-5, rtol=0)
        base, deltas = MODELS[PRETRAINED][name], [MODELS[task][name] - MODELS[PRETRAINED][name] for task in TASKS]
        mixed = base.double() + sum(factor * delta.double() for factor, delta in zip(own, deltas, strict=True))
        torch.testing.assert_close(found.tensors[name].double(), mixed, atol=1e-6, rtol=1e-6)


def numbers_of(found: Merged) -> list[Sequence[float]]:
    """The coefficients that a merge left, a row for each of the models' parameters."""
    rows = json.loads(found.files["coefficients.json"])["coefficients"]
    return [rows.get("all") or rows[name] for name in MODELS[PRETRAINED]]


def test_it_begins_at_task_arithmetic():
    found = merged(steps=1, lr=1e-12, init=0.4)
    wanted = merge(MODELS, {"name": task_arithmetic.__name__, "scaling_factor": 0.4})
    for name, tensor in wanted.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, atol=1e-6, rtol=1e-6)


def test_entropy_goes_down():
    rows = merged(steps=20, lr=5e-2, batch=12).files["entropy.csv"].splitlines()
    first, last = ([float(cell) for cell in row.split(",")[1:]] for row in (rows[1], rows[-1]))
    assert rows[0] == "step," + ",".join(TASKS)
    assert len(rows) == 21
    assert sum(last) < 0.8 * sum(first)


@pytest.mark.parametrize("grain", ["layer", "task"])
def test_coefficients_are_applied_again_without_images(tmp_path: Path, grain: str):
    found = merged(grain=grain, steps=3, lr=0.1)
    for name, text in found.files.items():
        (tmp_path / name).write_text(text)
    for place in (tmp_path, tmp_path / "coefficients.json"):
        again = merge(pool_from_memory(MODELS, SMALL), {"name": "adamerging", "weights": str(place)}, data=None)
        for name, tensor in found.tensors.items():
            assert torch.equal(again.tensors[name], tensor), name
    assert again.recipe["data"] == found.recipe["data"]
    assert again.recipe["uses"] == found.recipe["uses"] == ["val_images"]


def test_early_stop_keeps_the_best(monkeypatch: pytest.MonkeyPatch):
    looks = iter([3.0, 2.0, 1.0, 5.0, 4.0, 9.0, 9.0])
    settings = {"images": "test", "allow_test_adaptation": True, "lr": 0.05}
    with monkeypatch.context() as patched:
        patched.setattr(Watch, "look", lambda *_: next(looks))
        found = merged(steps=50, early_stop="entropy", every=3, patience=2, **settings)
    assert found.recipe["measured"]["adamerging.steps"] == 12
    assert len(found.files["entropy.csv"].splitlines()) == 1 + 12
    best = merged(steps=6, **settings)
    for name, tensor in best.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


@pytest.mark.parametrize("signal_of", ["entropy", "accuracy"])
def test_early_stop_looks_at_other_images_than_it_learns_on(signal_of: str):
    found = merged(steps=4, early_stop=signal_of, every=2)
    (row,) = {(row["images"], row["labels"], row["split"]) for row in found.recipe["data"]}
    assert row == (12, 2 if signal_of == "accuracy" else 0, "val")
    assert found.recipe["uses"] == ["val_images", *(["val_labels"] if signal_of == "accuracy" else [])]


def test_train_is_held_out_of_train():
    found = merged(steps=2, early_stop="accuracy", every=2, images="train")
    assert found.recipe["uses"] == ["train_images", "train_labels"]
    assert {(row["split"], row["labels"]) for row in found.recipe["data"]} == {("train", 2)}


def test_coefficients_are_refused_behind_other_edits(tmp_path: Path):
    again = {"name": "adamerging", "weights": str(tmp_path)}
    edits = [{"name": "ties", "keep": 0.5}]
    found = merge(pool_from_memory(MODELS, SMALL), {"name": "adamerging", "steps": 2}, edits=edits, data=RandomLender())
    (tmp_path / "coefficients.json").write_text(found.files["coefficients.json"])
    for other in ([], [{"name": "ties", "keep": 0.4}]):
        with pytest.raises(ConfigError, match="of task vectors behind ties: give the same edits"):
            merge(pool_from_memory(MODELS, SMALL), again, edits=other)
    same = merge(pool_from_memory(MODELS, SMALL), again, edits=edits)
    assert all(torch.equal(same.tensors[name], tensor) for name, tensor in found.tensors.items())


def test_what_is_held_out_is_not_learned_on(lent: Lent):
    rest, out = lent.images("digits", "val").held_out(0.25)
    learned = {row for step in range(20) for row in rest.rows(step, BATCH)}
    assert learned.isdisjoint(out.choice(100))
    assert learned | {*out.choice(100)} == set(range(12))


def counted(monkeypatch: pytest.MonkeyPatch, stop: int) -> list[int]:
    """Count batches; interrupt the process in the middle of step `stop` (from 1 on)."""
    seen: list[int] = []

    def counts(logits: Tensor) -> Tensor:
        seen.append(len(logits))
        if len(seen) == 3 * stop - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return entropies(logits)

    monkeypatch.setattr(module_of_entropy, "entropies", counts)
    return seen


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_an_interrupted_merge_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int):
    """After the first, in the middle, and after the last step."""
    folders = write_models(MODELS, tmp_path)
    settings = {"name": "adamerging", "steps": 6, "batch": BATCH, "lr": 0.05}

    def merge_files() -> Merged:
        pool = HuggingFaceClipVisionPool.from_tree({"models": folders})
        return merge(pool, settings, data=RandomLender())

    whole = merge_files()
    seen = counted(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        merge_files()
    assert len(seen) == 3 * stop
    again = merge_files()
    assert len(seen) == 3 * 6, "no step was made twice"
    for name, tensor in whole.tensors.items():
        assert torch.equal(again.tensors[name], tensor), name
    assert dict(again.files) == dict(whole.files)
    assert again.recipe["measured"] == whole.recipe["measured"]
    assert len(seen) == 18
    merge_files()
    assert len(seen) == 2 * 18, "what is done begins anew"


class Peek(DeltaConfig):
    """Δ = 0."""


def reachable(root: Any) -> Iterator[Any]:
    """Everything that attributes, containers and closures lead to."""
    seen, left = {}, [root]
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, (str, bytes, int, float, type)):
            continue
        seen[id(value)] = value
        yield value
        if isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            left += value
        left += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        left += getattr(value, "__dict__", {}).values()


def holds_labels(root: Any, labels: Sequence[int]) -> bool:
    def equals(value: Any) -> bool:
        if isinstance(value, Tensor):
            return value.ndim == 1 and value.tolist() == list(labels)
        return isinstance(value, (list, tuple)) and list(value) == list(labels)

    return any(equals(value) for value in reachable(root))


@pytest.mark.parametrize("declared", [("val_images",), ("val_images", "val_labels")])
def test_labels_are_out_of_reach_unless_they_are_declared(own_rules: None, declared: tuple):
    told: list[bool] = []

    @method(paper=rule_paper(), grain="leaf", uses=declared)
    def peek(view: PoolView, cfg: Peek, run: Run) -> Iterator[tuple[str, Tensor]]:
        """Looks where it should not."""
        images = run.data.images("signs", "val")
        images.pixels([0, 1])
        told.append(holds_labels(run.data, RandomLender().split("signs", "val").labels))
        with pytest.raises(ConfigError, match="test_images"):
            run.data.images("signs", "test")
        if "val_labels" in declared:
            assert images.labels([0]).tolist() == RandomLender().split("signs", "val").labels[:1]
        else:
            with pytest.raises(ConfigError, match="val_labels"):
                images.labels([0])
        for name, spec in view.specs.items():
            yield name, torch.zeros(spec.shape)

    found = merge(pool_from_memory(MODELS, SMALL), "peek", data=RandomLender())
    assert told == ["val_labels" in declared], "the walk finds what is there"
    assert [row["labels"] for row in found.recipe["data"]] == ["val_labels" in declared]


def rule_paper() -> Any:
    from clipfuse.fusion.paper import Paper

    return Paper("None", "Nobody", 2026, "", "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": "test"}, "allow_test_adaptation"),
        ({"steps": 0}, "steps"),
        ({"weights": "nowhere.json"}, "nowhere.json"),
        ({"grain": "model"}, "grain"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        merged(**settings)


def test_without_images_it_says_what_it_needs():
    with pytest.raises(ConfigError, match=r"adamerging: looks at images \(val_images\)"):
        merged(data=None)
