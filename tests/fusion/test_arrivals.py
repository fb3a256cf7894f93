"""Experts that arrive one at a time: the loop, its state, and going on where it stopped."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import SMALL, vision_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import clipfuse
from clipfuse.config import EmptyConfig
from clipfuse.errors import ClipfuseError, ConfigError, PoolError
from clipfuse.fusion import registry
from clipfuse.fusion.arrivals import Arrived
from clipfuse.fusion.chain import configure
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import METHODS, ContinualConfig, Norms, edit, method
from clipfuse.fusion.sweep import sweep
from clipfuse.pool import Leaf, PoolView, pool_from_memory
from clipfuse.pool.task_vector import TaskVector

Models = dict[str, dict[str, Tensor]]
PAPER = Paper("A Rule", "Nobody, Ann", 2026, "", "")
CONTINUAL = [name for name, rule in METHODS.items() if rule.continual]
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "edited": {"edits": ["dare", {"name": "factors", "factors": {"signs": -0.5}}], "seed": 3},
    "finished": {"finishes": [{"name": "lines", "alpha": 0.5, "beta": 1.0}], "dtype": "float16"},
}

every_continual = pytest.mark.parametrize("name", CONTINUAL)


def short(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, **({"steps": 3} if name == "dop" else {}), **settings}


def first(models: Models, count: int) -> Models:
    """The base and so many experts."""
    return dict(list(models.items())[: 1 + count])


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@every_continual
@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
def test_adding_one_gives_the_bits_of_merging_all_at_once(models: Models, name: str, extra: dict[str, Any]):
    whole = clipfuse.merge(models, short(name), **extra)
    before = clipfuse.merge(first(models, 2), short(name), **extra)
    kept = {key: tensor.clone() for key, tensor in before.tensors.items()}, dict(before.recipe)
    added = clipfuse.add(before, models["roads"], name="roads", threads=1)
    assert same(added.tensors, whole.tensors)
    assert added.recipe == whole.recipe
    assert added.state
    assert same(added.state.merged, whole.state.merged)
    assert same(before.tensors, kept[0])
    assert before.recipe == kept[1]


@every_continual
def test_from_folder_to_folder(pool_yaml: Path, tmp_path: Path, name: str):
    """Two additions to a folder with one expert: the files of the merge of three."""
    folders = {key: tmp_path / "models" / key for key in ("_pretrained_", "digits", "signs", "roads")}
    one = {"models": {key: str(folders[key]) for key in ("_pretrained_", "digits")}}
    clipfuse.merge(clipfuse.HuggingFaceClipVisionPool.from_tree(one), short(name), edits=["dare"], out=tmp_path / "1")
    clipfuse.add(tmp_path / "1", folders["signs"], out=tmp_path / "2")
    added = clipfuse.add(str(tmp_path / "2"), str(folders["roads"]), name="roads", out=tmp_path / "3")
    clipfuse.merge(pool_yaml, short(name), edits=["dare"], out=tmp_path / "whole")
    for file in ("model.safetensors", "state.safetensors", "clipfuse.json", "config.json", "README.md", ".clipfuse"):
        assert digest(tmp_path / "3" / file) == digest(tmp_path / "whole" / file), file
    assert added.recipe["arrivals"]["order"] == ["digits", "signs", "roads"]
    assert {member["name"] for member in added.recipe["pool"]} == set(folders)


def test_the_state_is_what_is_merged_unscaled(models: Models, pool_yaml: Path, tmp_path: Path):
    clipfuse.merge(pool_yaml, "opcm", scaling_factor=0.5, out=tmp_path / "out")
    arrivals = json.loads((tmp_path / "out/clipfuse.json").read_text())["arrivals"]
    state = load_file(tmp_path / "out/state.safetensors")
    assert state.keys() == models["_pretrained_"].keys()
    for task, norm in zip(arrivals["order"], arrivals["norms"], strict=True):
        taus = [models[task][name].double() - models["_pretrained_"][name].double() for name in state]
        assert norm == pytest.approx(sum(float(tau.square().sum()) for tau in taus) ** 0.5, rel=1e-6)
    size = sum(float(tensor.double().square().sum()) for tensor in state.values()) ** 0.5
    assert arrivals["factor"] == pytest.approx(sum(arrivals["norms"]) / 3 / size, rel=1e-7)
    weights = clipfuse.load(tmp_path / "out").tensors
    for name, tensor in state.items():
        want = models["_pretrained_"][name] + tensor * arrivals["factor"] * 0.5
        torch.testing.assert_close(weights[name], want, atol=1e-7, rtol=1e-6)


def test_a_saved_merge_goes_on(tmp_path: Path):
    modules = {"_pretrained_": vision_model(0), "a": vision_model(1), "b": vision_model(2)}
    two = clipfuse.merge(modules, "opcm")
    two.save(tmp_path / "two")
    assert digest(tmp_path / "two/state.safetensors")
    with pytest.raises(PoolError, match="its base is not in the recipe; pass it as base="):
        clipfuse.add(tmp_path / "two", vision_model(3), name="c")
    added = clipfuse.add(tmp_path / "two", vision_model(3), name="c", base=modules["_pretrained_"])
    whole = clipfuse.merge(modules | {"c": vision_model(3)}, "opcm")
    assert same(added.tensors, whole.tensors)
    assert added.geometry == SMALL
    added.save(tmp_path / "three")
    assert clipfuse.load(tmp_path / "three").state is not None


def test_shuffled_order_depends_on_seed_and_names_alone_and_is_recorded(models: Models):
    turned = {"_pretrained_": models["_pretrained_"], **dict(reversed(list(models.items())[1:]))}
    orders = set()
    for seed in range(6):
        chain = configure({"name": "continual_average", "shuffle": True, "seed": seed})
        merged, again = clipfuse.merge(models, chain), clipfuse.merge(turned, chain)
        order = merged.recipe["arrivals"]["order"]
        assert again.recipe["arrivals"]["order"] == order
        assert merged.recipe["method"]["seed"] == seed
        plain = clipfuse.merge({name: models[name] for name in ("_pretrained_", *order)}, "continual_average")
        assert same(merged.tensors, plain.tensors)
        orders.add(tuple(order))
    assert len(orders) > 2
    assert clipfuse.merge(turned, "continual_average").recipe["arrivals"]["order"] == ["roads", "signs", "digits"]


@every_continual
def test_a_sweep_merges_once_has_the_bits_of_single_merges_and_goes_on(models: Models, name: str):
    chain = configure(short(name, scaling_factor=[0.5, 1.5]), edits=["dare"])
    found = sweep(first(models, 2), chain)
    for value in chain.values:
        chosen = found.merged(value)
        single = clipfuse.merge(first(models, 2), chain.with_value(value))
        assert same(chosen.tensors, single.tensors)
        assert chosen.recipe == single.recipe
    added = clipfuse.add(chosen, models["roads"], name="roads")
    assert same(added.tensors, clipfuse.merge(models, chain.with_value(1.5)).tensors)


def test_what_a_choice_has_seen_is_not_forgotten(models: Models):
    chain = configure({"name": "opcm", "scaling_factor": [0.5, 1.5]}).with_value(1.5, ("val_images", "val_labels"))
    added = clipfuse.add(clipfuse.merge(first(models, 2), chain), models["roads"], name="roads")
    assert added.recipe["uses"] == ["val_images", "val_labels"]


@every_continual
def test_task_vectors_arrive_too(models: Models, name: str):
    """A delta-native expert that lacks parameters leaves what is merged of them in place."""
    base, tau = models["_pretrained_"], "encoder.layers.1.mlp.fc1.weight"
    part = TaskVector({tau: models["roads"][tau] - base[tau]})
    full = TaskVector({n: part.tensors.get(n, torch.zeros_like(t)) for n, t in base.items()})
    before = clipfuse.merge(first(models, 2), short(name))
    a, b = (clipfuse.add(before, vector, name="roads") for vector in (part, full))
    assert same(a.tensors, b.tensors)
    assert any(not torch.equal(a.tensors[n], base[n]) for n in base if n != tau)


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, table in registry.TABLES.items():
        monkeypatch.setitem(registry.TABLES, kind, dict(table))


def test_edits_see_one_expert_and_methods_a_pair(models: Models, rules: None):
    seen: list[tuple[str, ...]] = []
    sums: list[tuple[float, float]] = []

    def look(view: PoolView, cfg: EmptyConfig) -> str:
        seen.append(view.tasks)
        return view.tasks[0]

    def look_at_pair(view: PoolView, cfg: ContinualConfig) -> None:
        seen.append(view.tasks)
        found = torch.tensor([row.tolist() for row in view.map(lambda leaf: leaf.deltas.flatten(1).double().sum(1))])
        sums.append(tuple(found.sum(0).tolist()))

    @edit(paper=PAPER, grain="leaf", prepare=look, passes=1)
    def doubled(leaf: Leaf, cfg: EmptyConfig, task: str) -> Tensor:
        assert leaf.tasks == (task,)
        leaf.tally[f"doubled.{task}"] += 1
        return leaf.deltas * 2

    @method(paper=PAPER, grain="element", continual=True, prepare=look_at_pair, passes=1, rescale=lambda norms: 0.5)
    def newest(leaf: Leaf, cfg: ContinualConfig, state: None) -> Tensor:
        assert leaf.tasks[0] == "_merged_"
        return leaf.deltas[1]

    base = models["_pretrained_"]
    merged = clipfuse.merge(models, "newest", edits=["doubled"])
    assert seen == [("digits",), ("signs",), ("_merged_", "signs"), ("roads",), ("_merged_", "roads")]
    for name, theta in base.items():
        want = theta + (models["roads"][name] - theta) * 2 * 0.5
        torch.testing.assert_close(merged.tensors[name], want, atol=1e-7, rtol=1e-6)
    doubles = {
        t: 2 * sum(float((models[t][n] - theta).double().sum()) for n, theta in base.items()) for t in list(models)
    }
    pairs = [(doubles["digits"], doubles["signs"]), (doubles["signs"], doubles["roads"])]
    assert torch.tensor(sums).allclose(torch.tensor(pairs), rtol=1e-4, atol=1e-4)
    assert set(merged.recipe["measured"]) == {"doubled.digits", "doubled.signs", "doubled.roads"}


def test_rescale_gets_the_norms_of_what_was_merged(models: Models, rules: None):
    got: list[Norms] = []

    def keep(norms: Norms) -> float:
        got.append(norms)
        return 1.0

    @method(paper=PAPER, grain="leaf", continual=True, rescale=keep)
    def summed(leaf: Leaf, cfg: ContinualConfig) -> Tensor:
        return leaf.deltas.sum(0)

    clipfuse.merge(models, "summed")
    total = [
        sum(models[t][n].double() - b.double() for t in list(models)[1:]) for n, b in models["_pretrained_"].items()
    ]
    assert len(got) == 1
    assert got[0].merged == pytest.approx(sum(float(part.square().sum()) for part in total) ** 0.5, rel=1e-6)
    assert len(got[0].experts) == 3


def test_progress_stays_within_what_is_announced(models: Models):
    pool = pool_from_memory(models)
    chain, told = configure("continual_ties"), []
    clipfuse.merge(pool, chain, progress=told.append)
    assert 0.5 < sum(told) / (pool.nbytes * chain.passes) <= 1


def test_a_small_budget_holds_a_pair_not_the_pool(models: Models):
    """Memory does not grow with the number of experts."""
    many = models | {f"more{k}": models["signs"] for k in range(5)}
    largest = max(tensor.numel() for tensor in models["_pretrained_"].values())
    memory = int(METHODS["opcm"].sizes(2) * largest * 4) + 1
    assert same(clipfuse.merge(many, "opcm", memory=memory).tensors, clipfuse.merge(many, "opcm").tensors)
    with pytest.raises(ConfigError, match="bytes are too few"):
        clipfuse.merge(many, "opcm", memory=memory // 2)


def other_shape(models: Models) -> dict[str, Tensor]:
    return models["roads"] | {"post_layernorm.bias": torch.zeros(3)}


@pytest.mark.parametrize(
    ("method_name", "change", "says"),
    [
        ("simple_average", {}, "simple_average merges all experts at once; one is added to continual_average, "),
        ("opcm", {"name": "signs"}, "signs: is merged already; what is new needs another name (digits, signs)"),
        ("opcm", {"name": "_new_"}, "name: '_new_' is no name of an expert"),
        ("opcm", {"name": None}, "name: is required for an expert in memory"),
        ("opcm", {"expert": other_shape}, "roads: another geometry: post_layernorm.bias is (3,)"),
        ("opcm", {"base": lambda models: models["signs"]}, "is not what base and state.safetensors give"),
        ("opcm", {"expert": "no/such/folder/here"}, "no/such/folder/here: "),
        ("opcm", {"memory": "1 byte"}, "memory: takes bytes"),
    ],
)
def test_what_cannot_be_added_is_said_in_one_line(models: Models, method_name: str, change: dict[str, Any], says: str):
    before = clipfuse.merge(first(models, 2), method_name)
    options = {"expert": models["roads"], "name": "roads", **change}
    options = {key: value(models) if callable(value) else value for key, value in options.items()}
    with pytest.raises(ClipfuseError) as caught:
        clipfuse.add(before, options.pop("expert"), **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_finish_that_looks_at_experts_is_refused(models: Models, rules: None):
    @registry.finish(paper=PAPER, grain="element")
    def nosy(leaf: Leaf, delta: Tensor, cfg: EmptyConfig) -> Tensor:
        return delta * len(leaf.deltas)

    before = clipfuse.merge(first(models, 2), "opcm", finishes=["nosy"])
    with pytest.raises(ConfigError, match="the finish nosy looks at all experts: merge them at once"):
        clipfuse.add(before, models["roads"], name="roads")


def test_damaged_and_missing_states_are_named(pool_yaml: Path, tmp_path: Path):
    out, expert = tmp_path / "out", tmp_path / "models/roads"
    clipfuse.merge(pool_yaml, "continual_average", out=out)
    recipe, state = (out / "clipfuse.json").read_text(), load_file(out / "state.safetensors")

    def fails(match: str) -> None:
        with pytest.raises(ClipfuseError, match=match):
            clipfuse.add(out, expert, name="more", out=tmp_path / "more")
        assert not (tmp_path / "more").exists()

    save_file(dict(list(state.items())[1:]), out / "state.safetensors")
    fails("state.safetensors has other parameters than the base")
    save_file({name: tensor.half() for name, tensor in state.items()}, out / "state.safetensors")
    fails("are not those of a continual merge")
    save_file({name: tensor + 1 for name, tensor in state.items()}, out / "state.safetensors")
    fails("another base, or a damaged merge")
    (out / "state.safetensors").write_bytes(b"")
    fails("state.safetensors: is empty")
    (out / "state.safetensors").unlink()
    fails("has no state.safetensors beside its weights")
    save_file(state, out / "state.safetensors")
    (out / "clipfuse.json").write_text(recipe.replace('"norms"', '"norm"'))
    fails("are not those of a continual merge")
    (out / "clipfuse.json").write_text(recipe)
    with pytest.raises(ClipfuseError, match="choose another output"):
        clipfuse.add(out, expert, name="more", out=out, overwrite=True)
    assert isinstance(clipfuse.add(out, expert, name="more", out=tmp_path / "more").state, Arrived)
