"""What the engine does beyond a leaf at a time: generators, affine settings, budgets, scratch, task vectors as experts."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_models import random_models
from torch import Tensor

import clipfuse
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.errors import ConfigError, OutputError, PoolError
from clipfuse.fusion import registry
from clipfuse.fusion.chain import configure
from clipfuse.fusion.merge import look_at
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, method
from clipfuse.fusion.sinks import TensorSink, scratch, scratch_file
from clipfuse.fusion.streams import Run, complete
from clipfuse.fusion.sweep import sweep
from clipfuse.pool import Leaf, PoolView, pool_from_memory, pool_of_deltas
from clipfuse.pool.task_vector import TaskVector
from clipfuse.pool.view import SLICE, Budget

Models = dict[str, dict[str, Tensor]]
PAPER = Paper("A Rule", "Nobody, Ann", 2026, "", "")


class Blend(DeltaConfig):
    """Δ = mean_k τ_k + t·τ_0, or the same as a generator."""

    t: float = 0.25
    """Weight of the first expert."""


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "METHODS", table := dict(registry.METHODS))
    monkeypatch.setitem(registry.TABLES, "method", table)

    @method(paper=PAPER, grain="element", affine_in="t")
    def blend(leaf: Leaf, cfg: Blend) -> Tensor:
        return leaf.deltas.mean(0) + cfg.t * leaf.deltas[0]

    @method(paper=PAPER, grain="matrix")
    def streamed(view: PoolView, cfg: Blend, run: Run) -> Iterator[tuple[str, Tensor]]:
        specs = {name: TensorSpec(spec.shape, torch.float32) for name, spec in view.specs.items()}
        means = run.scratch(specs)

        def mean(leaf: Leaf) -> None:
            means[leaf.name].copy_(leaf.deltas.mean(0))
            run.tally["leaves"] += 1

        for _ in run.map(mean, "matrix"):
            pass
        for leaf in view:
            yield leaf.name, means[leaf.name] + cfg.t * leaf.deltas[0]

    assert {"blend", "streamed"} <= set(table)


def tensors(models: Models, method: str, **settings) -> dict[str, Tensor]:
    return dict(clipfuse.merge(models, method, **settings).tensors)


def test_a_generator_gives_what_a_rule_gives(rules: None, models: Models):
    lines = [{"name": "lines", "alpha": 0.5, "beta": 1.0}]
    for finishes in ([], lines):
        rule = tensors(models, "blend", scaling_factor=0.7, finishes=finishes)
        streamed = clipfuse.merge(models, "streamed", scaling_factor=0.7, finishes=finishes)
        for name, tensor in rule.items():
            torch.testing.assert_close(streamed.tensors[name], tensor, atol=1e-7, rtol=0)
        assert streamed.recipe["measured"] == {"leaves": len(rule)}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({}, "gave nothing for a"),
        ({"a": (2,)}, r"gave \(2,\) for a, it takes \(3,\)"),
        ({"a": (3,), "c": (3,)}, "gave c which is no parameter"),
    ],
)
def test_what_a_generator_gives_is_checked(found: dict, says: str):
    given = ((name, torch.zeros(shape)) for name, shape in found.items())
    with pytest.raises(ConfigError, match=f"rule: {says}"):
        list(complete("rule", given, {"a": TensorSpec((3,), torch.float32)}))
    twice = [("a", torch.zeros(3)), ("a", torch.zeros(3))]
    with pytest.raises(ConfigError, match="rule: gave a twice"):
        list(complete("rule", twice, {"a": TensorSpec((3,), torch.float32)}))


def test_a_generator_sees_the_pool_through_the_edits_and_can_be_swept(rules: None, models: Models):
    chain = configure({"name": "streamed", "scaling_factor": [0.2, 0.9]}, ["dare"])
    found = sweep(models, chain)
    for value in chain.values:
        sink = TensorSink.empty(found.specs)
        found.write(value, sink)
        single = clipfuse.merge(models, chain.with_value(value)).tensors
        assert all(torch.equal(sink.tensors[name], tensor) for name, tensor in single.items())
        plain = clipfuse.merge(models, configure({"name": "streamed", "scaling_factor": value})).tensors
        assert any(not torch.equal(sink.tensors[name], tensor) for name, tensor in plain.items())


def test_a_sweep_of_an_affine_setting_has_the_bits_of_single_merges(rules: None, models: Models):
    chain = configure({"name": "blend", "t": [0.0, 0.25, 1.0, -2.0], "scaling_factor": 0.5})
    found = sweep(models, chain)
    assert len(found.parts) == 2
    for value in chain.values:
        sink = TensorSink.empty(found.specs)
        found.write(value, sink)
        single = tensors(models, "blend", t=value, scaling_factor=0.5)
        for name, tensor in single.items():
            assert torch.equal(sink.tensors[name], tensor)
            deltas = (
                torch.stack([models[task][name] for task in ("digits", "signs", "roads")])
                - models["_pretrained_"][name]
            )
            want = models["_pretrained_"][name] + 0.5 * (deltas.mean(0) + value * deltas[0])
            torch.testing.assert_close(tensor, want, atol=1e-7, rtol=1e-6)


def test_only_settings_that_can_be_swept_take_a_list(rules: None):
    with pytest.raises(ConfigError, match=r"method.t: .*one at a time"):
        configure({"name": "blend", "t": [0.1, 0.2], "scaling_factor": [1.0, 2.0]})
    with pytest.raises(ConfigError, match="method.keep: takes one number; scaling_factor takes a list"):
        configure({"name": "ties_merging", "keep": [0.1, 0.2]})
    with pytest.raises(ConfigError, match="takes a number or a list of numbers"):
        configure({"name": "blend", "t": ["a"]})


def test_task_vectors_are_experts(models: Models):
    base = models["_pretrained_"]
    vectors = {
        task: TaskVector({name: tensor - base[name] for name, tensor in models[task].items()})
        for task in ("digits", "signs", "roads")
    }
    want = tensors(models, "ties_merging")
    found = dict(clipfuse.merge({"_pretrained_": base, **vectors}, "ties_merging").tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in want.items())
    mixed = {"_pretrained_": base, **models, "signs": vectors["signs"]}
    found = dict(clipfuse.merge(mixed, "simple_average").tensors)
    for name, tensor in tensors(models, "simple_average").items():
        torch.testing.assert_close(found[name], tensor, atol=1e-7, rtol=0)


def test_what_no_task_vector_touches_stays_the_base_and_is_not_worked_on(
    models: Models, monkeypatch: pytest.MonkeyPatch
):
    base, touched = models["_pretrained_"], "encoder.layers.0.mlp.fc1.weight"
    vectors = {task: TaskVector({touched: models[task][touched] - base[touched]}) for task in ("digits", "signs")}
    seen = []
    real = registry.METHODS["task_arithmetic"].function
    monkeypatch.setitem(
        registry.METHODS,
        "task_arithmetic",
        replace(
            registry.METHODS["task_arithmetic"],
            function=lambda leaf, *rest: (seen.append(leaf.name), real(leaf, *rest))[1],
        ),
    )
    found = clipfuse.merge({"_pretrained_": base, **vectors}, "task_arithmetic", scaling_factor=1.0).tensors
    assert set(seen) == {touched}
    assert all(torch.equal(found[name], base[name]) for name in base if name != touched)
    assert not torch.equal(found[touched], base[touched])
    one_more = {"_pretrained_": base, **vectors, "roads": models["roads"]}
    assert not torch.equal(
        clipfuse.merge(one_more, "task_arithmetic").tensors["post_layernorm.bias"], base["post_layernorm.bias"]
    )
    with pytest.raises(PoolError, match="digits: has 'x'"):
        clipfuse.merge({"_pretrained_": base, "digits": TaskVector({"x": torch.zeros(1)})}, "task_arithmetic")


def test_a_pool_of_deltas_needs_no_base():
    leaves = list(pool_of_deltas({"a": {"w": torch.ones(2, 3)}, "b": {"w": torch.full((2, 3), 2.0)}}))
    assert [leaf.deltas[:, 0, 0].tolist() for leaf in leaves] == [[1.0, 2.0]]


def test_an_expert_equal_to_the_base_is_named(models: Models, caplog: pytest.LogCaptureFixture):
    models["signs"] = {name: tensor.clone() for name, tensor in models["_pretrained_"].items()}
    clipfuse.merge(models, "ties_merging")
    assert caplog.messages == ["signs: equals the base: its task vector is zero"]
    caplog.clear()
    clipfuse.merge({name: models[name] for name in ("_pretrained_", "roads")}, "magmax")
    assert caplog.messages == ["roads: is the only expert of the pool: there is nothing to merge it with"]
    models["signs"]["post_layernorm.bias"][-1] += 1
    assert pool_from_memory(models).unmoved() == []


@pytest.mark.parametrize("method", ["ties_merging", "slerp"])
def test_bits_do_not_depend_on_the_budget(models: Models, method: str):
    if method == "slerp":
        models.pop("roads")
    free = tensors(models, method)
    tight = tensors(models, method, memory=7 << 20, threads=3)
    assert all(torch.equal(free[name], tensor) for name, tensor in tight.items())


def test_slices_in_work_fit_the_budget(models: Models):
    view = look_at(pool_from_memory(models), threads=4)
    need = view.need(min(SLICE, max(spec.numel for spec in view.specs.values())), "element")
    lock, running, most = threading.Lock(), [0], [0]

    def work(leaf: Leaf) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.002)
        with lock:
            running[0] -= 1

    for memory, wanted in ((2 * need + 1, 2), (need, 1), (None, 4)):
        most[0] = 0
        for _ in replace(view, memory=memory).map(work):
            pass
        assert most[0] == wanted


def test_too_small_a_budget_is_told_before_weights_are_read(models: Models):
    models.pop("roads")
    models["signs"] = {name: torch.full_like(tensor, torch.nan) for name, tensor in models["signs"].items()}
    with pytest.raises(
        ConfigError, match=r"memory: 1,000,000 bytes are too few; encoder.layers.0.mlp.fc1.weight of 2 exp"
    ):
        clipfuse.merge(models, "slerp", memory="1MB")


def test_a_device_that_is_not_there(models: Models):
    with pytest.raises(ConfigError, match="device: 'cuda:99' cannot be used"):
        clipfuse.merge(models, "magmax", device="cuda:99")


def test_threads_wait_for_the_budget_but_one_alone_may_have_more():
    budget, most, now = Budget(10), [], []
    lock = threading.Lock()

    def work(size: int) -> None:
        with budget.hold(size):
            with lock:
                now.append(size)
                most.append(sum(now))
            threading.Event().wait(0.002)
            with lock:
                now.remove(size)

    threads = [threading.Thread(target=work, args=(size,)) for size in (6, 4, 5, 25, 3, 3, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(most) == 7
    assert {size for size in most if size > 10} == {25}


def test_scratch_is_zero_writable_and_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    specs = {
        "a": TensorSpec((3, 5), torch.float32),
        "none": TensorSpec((0,), torch.float32),
        "b": TensorSpec((), torch.float32),
    }
    with scratch(specs, tmp_path) as room:
        assert {name: tuple(tensor.shape) for name, tensor in room.items()} == {"a": (3, 5), "none": (0,), "b": ()}
        room["a"].fill_(2)
        assert room["b"].item() == 0
        assert room["a"].sum() == 30
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("clipfuse.checkpoints.writer.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(OutputError, match="bytes are needed.*TMPDIR"), scratch(specs, tmp_path):
        pass


def test_scratch_is_reserved_on_the_disk_and_errors_inside_are_not_its_own(tmp_path: Path):
    room = scratch_file(tmp_path, 1 << 20)
    with room:
        assert os.fstat(room.fileno()).st_blocks * 512 >= 1 << 20
    with pytest.raises(FileNotFoundError), scratch({"a": TensorSpec((3,), torch.float32)}, tmp_path):
        raise FileNotFoundError("an input")


def test_large_matrices_are_begun_first(models: Models):
    order = [leaf for leaf in look_at(pool_from_memory(models), threads=1).map(lambda leaf: leaf.numel, "matrix")]
    assert order == sorted(order, reverse=True)


def test_merging_again_after_an_interruption_gives_the_same_bits(models: Models, monkeypatch: pytest.MonkeyPatch):
    whole = tensors(random_models(), "ties_merging", edits=["dare"])
    calls = []

    def stop(count: int) -> None:
        calls.append(count)
        if len(calls) == 5:
            raise KeyboardInterrupt

    pool = pool_from_memory(models)
    with pytest.raises(KeyboardInterrupt):
        clipfuse.merge(pool, "ties_merging", edits=["dare"], progress=stop)
    again = dict(clipfuse.merge(pool, "ties_merging", edits=["dare"]).tensors)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
