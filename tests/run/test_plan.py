"""What `check` says of a merge: facts of the chain and the pool, and estimates made of them. No test asserts a time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import SMALL

from clipfuse.checkpoints.geometry import parameter_shapes
from clipfuse.cli.options import duration
from clipfuse.config.presets import load_preset
from clipfuse.errors import ConfigError
from clipfuse.fusion.chain import configure
from clipfuse.fusion.merge import look_at
from clipfuse.fusion.registry import METHODS, TABLES, Rule, find_any
from clipfuse.pool import pool_from_memory
from clipfuse.pool.view import SLICE
from clipfuse.run import plan, speed
from clipfuse.run.plan import Plan, make_plan, peak_memory
from clipfuse.run.speed import Speed, measure_speed
from clipfuse.testing.case import Case

SIZE = sum(int(torch.Size(shape).numel()) for shape in parameter_shapes(SMALL).values())
LARGEST = SMALL.hidden_size * SMALL.intermediate_size
MODEL = 4 * SIZE


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "measure_speed", lambda chain, view: Speed(1e6, 1e9))


def planned(pool_yaml: Path, method: str, **tree: Any) -> Plan:
    named = {"name": method, **tree.pop("settings", {})}
    return make_plan({"method": named, "modelpool": load_preset("modelpool", str(pool_yaml)), **tree})


@pytest.mark.parametrize(("method", "passes"), [("task_arithmetic", 1), ("ties_merging", 3)])
def test_passes_read_the_pool_and_take_their_time(pool_yaml: Path, method: str, passes: int):
    found = planned(pool_yaml, method)
    assert (found.passes, found.bytes_read, found.bytes_written) == (passes, passes * 4 * MODEL, MODEL)
    assert found.work == 0
    assert found.seconds == pytest.approx(found.bytes_read / 1e6)
    assert found.tensors == len(parameter_shapes(SMALL))


def test_the_work_of_every_step_counts(pool_yaml: Path):
    rule = METHODS["iso_c"]
    assert rule.work
    cfg = rule.config()
    want = sum(rule.work(shape, 3, cfg) for shape in parameter_shapes(SMALL).values())
    found = planned(pool_yaml, "iso_c")
    assert found.work == pytest.approx(want)
    assert found.work > 0
    assert found.seconds == pytest.approx(found.bytes_read / 1e6 + want / 1e9)
    assert planned(pool_yaml, "iso_c", finishes=[{"name": "svc", "alpha": 0.1}]).work > want


@pytest.mark.parametrize(
    "rule", [rule for table in TABLES.values() for rule in table.values()], ids=lambda rule: rule.name
)
def test_every_rule_can_be_planned(models, rule: Rule):
    case = Case.of(rule, {})
    view = look_at(pool_from_memory(case.members(models)))
    assert peak_memory(case.chain, view) > 0
    work = case.chain.work(parameter_shapes(SMALL).values(), len(case.tasks))
    assert (work > 0) == (rule.work is not None)


def test_the_work_of_an_affine_method_is_that_of_both_ends(pool_yaml: Path):
    rule = METHODS["cart"]
    assert rule.work
    one = sum(rule.work(shape, 3, rule.config()) for shape in parameter_shapes(SMALL).values())
    assert planned(pool_yaml, "cart").work == pytest.approx(one)  # at spread=0 there is none


def test_a_continual_method_reads_the_base_for_each_expert_and_writes_its_state(pool_yaml: Path):
    found = planned(pool_yaml, "continual_average")
    assert (found.bytes_read, found.bytes_written) == (6 * MODEL, 2 * MODEL)


def test_memory_is_that_of_leaves_in_work(models):
    view = replace(look_at(pool_from_memory(models)), threads=2)
    leaf = 4 * LARGEST
    assert peak_memory(configure("task_arithmetic"), view) == 2 * (4 * 3 + 4) * 4 * SLICE
    assert peak_memory(configure("tsv_merging"), view) == 2 * METHODS["tsv_merging"].sizes(3) * leaf
    assert peak_memory(configure("opcm"), view) == pytest.approx(2 * METHODS["opcm"].sizes(2) * leaf)
    one = int(METHODS["tsv_merging"].sizes(3) * leaf)
    assert peak_memory(configure("tsv_merging"), replace(view, memory=one + 5)) == one + 5


def test_a_sweep_keeps_what_its_values_share(models):
    view = look_at(pool_from_memory(models))
    single = peak_memory(configure("cart"), view)
    assert peak_memory(configure({"name": "cart", "scaling_factor": [0.1, 0.2]}), view) == single + 2 * MODEL
    assert peak_memory(configure({"name": "cart", "spread": [0.1, 0.2]}), view) == single + 3 * MODEL


def test_no_weights_are_read(pool_yaml: Path):
    for expert in (pool_yaml.parent / "models").glob("*/model.safetensors"):
        with expert.open("r+b") as file:
            file.seek(-(4 * SIZE - 8), 2)
            file.write(b"\xff" * (4 * SIZE - 8))  # NaN from end to end
    assert planned(pool_yaml, "ties_merging").passes == 3
    with pytest.raises(ConfigError, match="did you mean 'signs'"):
        planned(pool_yaml, "weighted_average", settings={"weights": {"digits": 1.0, "sign": 1.0, "roads": 1.0}})


@pytest.mark.parametrize("name", [name for table in TABLES.values() for name, rule in table.items() if not rule.work])
def test_any_rule_can_be_measured_without_a_word(models, name: str, caplog: pytest.LogCaptureFixture):
    case = Case.of(find_any(name), {})
    found = measure_speed(case.chain, look_at(pool_from_memory(case.members(models))))
    assert found.bytes_per_second > 0
    assert found.flop_per_second == 0
    assert not caplog.messages


@pytest.mark.parametrize(
    "chain",
    [
        configure("tsv_merging", ["dare"]),
        configure({"name": "task_arithmetic", "scaling_factor": [0.1, 0.2]}),
        configure("task_arithmetic", finishes=[{"name": "scales", "scales": {"post_layernorm.*": 2.0}}]),
    ],
    ids=["costly", "swept", "of parameters that are not in the made-up pool"],
)
def test_any_chain_can_be_measured(models, chain):
    found = measure_speed(chain, look_at(pool_from_memory(models)))
    assert found.bytes_per_second > 0
    assert (found.flop_per_second > 0) == (chain.method.rule.name == "tsv_merging")


def test_nothing_is_timed_again_that_took_long_enough(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 1.0])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    calls = []
    assert speed.fastest(lambda: calls.append(1)) == 1.0
    assert calls == [1]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.03, "less than a second"), (1.49, "about a second"), (1.62, "about 1.6 s"), (44.4, "about 44 s"), (91.4, "about 1.5 min"), (3601, "about 60 min"), (9000, "about 2.5 h"), (123456, "about 34 h")],
)  # fmt: skip
def test_times_for_people(seconds: float, told: str):
    assert duration(seconds) == told
