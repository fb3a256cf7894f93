"""Each contract catches a rule that breaks it, and says so in one line."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clipfuse.config import Config
from clipfuse.errors import ConfigError
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import TABLES, ContinualConfig, DeltaConfig, Rule, after, edit, find_any, finish, method
from clipfuse.pool import Leaf
from clipfuse.testing import CONTRACTS, check_contract, check_method, contracts_of

pytestmark = pytest.mark.usefixtures("own_rules")
PAPER = Paper("A rule for tests", "Nobody, N.", 2026, "")


class Plain(DeltaConfig):
    """Δ = mean_k τ_k."""


class Forgetful(DeltaConfig):
    """Δ = mean_k τ_k."""

    pair: Any = (1, 2)
    """Comes back from JSON as a list."""


class Bent(DeltaConfig):
    """Δ = t² · mean_k τ_k."""

    t: float = 0.5
    """Said to be affine in it."""


class Arriving(ContinualConfig):
    """S_t = S_{t−1} + τ_t."""


class Demanding(DeltaConfig):
    """Δ = strength · mean_k τ_k."""

    strength: float
    """Has neither a default nor an example."""


def rule(
    function: Callable[..., Tensor],
    config: type[Config] = Plain,
    doc: str = "Mean. Source: none.",
    kind: Callable[..., Any] = method,
    **facts: Any,
) -> Rule:
    """A method or finish made of `function`, whatever that does."""

    def odd(leaf, *rest, cfg=None):
        return function(leaf, *rest)

    odd.__doc__ = doc
    odd.__annotations__["cfg"] = config
    kind(paper=PAPER, **{"grain": "element", **facts})(odd)
    return find_any("odd")


def mean(leaf: Leaf, cfg: Any) -> Tensor:
    return leaf.deltas.mean(0)


def spoils_the_base(leaf: Leaf, cfg: Any) -> Tensor:
    found = leaf.deltas.mean(0)
    leaf.base.add_(1)
    return found


def looks_where_it_lies(leaf: Leaf, cfg: Any) -> Tensor:
    return leaf.deltas.mean(0) * leaf.stored_experts[0].untyped_storage().resizable()  # not of a mapped file


def remembers(leaf: Leaf, cfg: Any, calls: list[int] = []) -> Tensor:  # noqa: B006
    calls.append(1)
    return leaf.deltas.sum(0) * len(calls)


def computes_in_half(leaf: Leaf, cfg: Any) -> Tensor:
    return (leaf.stored_experts[0] - leaf.stored_base).float()


def learned(paper: Paper, grain: str, **facts: Any) -> Callable[..., Any]:
    """The decorator of what comes after a merge, which has no grain."""
    return after(paper=paper, uses=("val_images",), **facts)


BROKEN: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "documented": (mean, {"doc": "No more than this."}, "Source:"),
    "round_trip": (mean, {"config": Forgetful}, "came back as"),
    "same_form": (lambda leaf, cfg: leaf.deltas.sum(), {}, "gave ()"),
    "nothing_learned": (lambda leaf, cfg: mean(leaf, cfg) + 1e-4, {}, "differs"),
    "zero_factor": (lambda leaf, cfg: mean(leaf, cfg) / cfg.scaling_factor, {}, "not finite"),
    "inputs_untouched": (spoils_the_base, {}, "_pretrained_: embeddings.class_embedding has other bits"),
    "any_threads": (lambda leaf, cfg: mean(leaf, cfg) * torch.rand(()), {}, "2 threads"),
    "any_order": (lambda leaf, cfg: leaf.deltas[0].clone(), {}, "differs"),
    "any_home": (looks_where_it_lies, {}, "other bits"),
    "any_slices": (lambda leaf, cfg: leaf.deltas.mean(0) * leaf.deltas.std(), {}, "mlp.fc1.weight has other bits"),
    "one_expert": (lambda leaf, cfg: leaf.deltas.sum(0) / leaf.deltas.new_tensor(len(leaf.tasks) - 1), {}, "not finite"),
    "idle_expert": (lambda leaf, cfg: (leaf.deltas / leaf.deltas.flatten(1).norm(dim=1).view(-1, *[1] * (leaf.deltas.ndim - 1))).sum(0), {}, "not finite"),
    "half_precision": (computes_in_half, {}, "other bits"),
    "task_vectors": (lambda leaf, cfg: leaf.stored_experts[0].float() - leaf.base, {}, "differs"),
    "affine": (lambda leaf, cfg: cfg.t**2 * mean(leaf, cfg), {"config": Bent, "affine_in": "t"}, "differs"),
    "one_at_a_time": (remembers, {"config": Arriving, "continual": True}, "other bits"),
    "blind": (lambda leaf, delta, cfg: delta * leaf.deltas.shape[0], {"kind": finish, "sees_experts": False}, "differs"),
    "for_each_task": (lambda view, cfg, run, forward: {task: {"up": torch.ones(2) / 0} for task in view.tasks}, {"kind": learned}, "NaN or Inf"),
    "ledger": (mean, {"uses": ("train_images",)}, "has looked at"),
    "swept": (lambda leaf, cfg: mean(leaf, cfg) * cfg.scaling_factor, {}, "scaling_factor=0.3"),
}  # fmt: skip
"""Contract → a rule that breaks it, facts about that rule, and what the message says."""


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_broken_contract_is_found_and_told(name: str):
    function, facts, says = BROKEN[name]
    with pytest.raises(AssertionError) as caught:
        check_contract(rule(function, **facts), name)
    assert str(caught.value).startswith(f"odd breaks {name} ({CONTRACTS[name].promise}) ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sound_rule_keeps_all_and_broken_ones_are_told_together():
    sound = rule(mean)
    check_method("odd")
    assert contracts_of(sound) == [
        name for name in CONTRACTS if name not in ("affine", "blind", "for_each_task", "ledger", "one_at_a_time")
    ]
    del TABLES["method"]["odd"]
    rule(lambda leaf, cfg: leaf.deltas[0] / 0, doc="")
    with pytest.raises(AssertionError) as caught:
        check_method("odd")
    told = [line.split()[2] for line in str(caught.value).splitlines()]
    assert told[:4] == ["documented", "same_form", "nothing_learned", "zero_factor"]


def test_a_rule_that_fails_in_its_own_way_is_told_with_the_error():
    crash = rule(lambda leaf, cfg: leaf.no_such_thing)
    with pytest.raises(
        AssertionError, match="AttributeError: 'Leaf' object has no attribute 'no_such_thing'"
    ) as caught:
        check_contract(crash, "same_form")
    assert isinstance(caught.value.__cause__, AttributeError)


def test_edits_and_finishes_are_checked_in_a_chain():
    @edit(paper=PAPER, grain="element")
    def doubled(leaf: Leaf, cfg: Plain) -> Tensor:
        """Twice. Source: none."""
        return leaf.deltas * 2

    @finish(paper=PAPER, grain="element")
    def shifted(leaf: Leaf, delta: Tensor, cfg: Plain) -> Tensor:
        """Beside the base. Source: none."""
        return delta + 1e-4

    check_method("doubled")
    for name in ("nothing_learned", "zero_factor"):
        with pytest.raises(AssertionError, match=f"shifted breaks {name}"):
            check_contract(find_any("shifted"), name)


def test_settings_without_default_are_asked_for():
    strong = rule(lambda leaf, cfg: mean(leaf, cfg) * cfg.strength, config=Demanding)
    with pytest.raises(ConfigError, match="odd: strength has no default; give the check a value"):
        check_method("odd")
    check_contract(strong, "same_form", strength=0.5)
    with pytest.raises(ConfigError, match="did you mean 'strength'"):
        check_method("odd", strenth=0.5)
    with pytest.raises(ConfigError, match="did you mean 'magmax'"):
        check_method("magmx")


def test_rules_with_places_are_not_turned_around():
    assert "any_order" not in contracts_of(find_any("slerp"))
    assert "any_slices" not in contracts_of(find_any("slerp"))
    assert "swept" not in contracts_of(find_any("simple_average"))


def test_neither_pytest_nor_transformers_is_needed():
    code = "from clipfuse.testing import check_method; check_method('simple_average'); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"pytest", "hypothesis", "transformers", "hydra"}
