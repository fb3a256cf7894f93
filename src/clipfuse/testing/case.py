"""A rule in a chain on random models, and comparisons that say what differs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from clipfuse.config import example_settings
from clipfuse.errors import ConfigError
from clipfuse.fusion.chain import Chain, configure
from clipfuse.fusion.lent import Lender
from clipfuse.fusion.merge import merge
from clipfuse.fusion.registry import Rule
from clipfuse.fusion.step import Step
from clipfuse.pool import PRETRAINED, ModelPool, pool_from_memory
from clipfuse.testing.lender import RandomLender
from clipfuse.testing.models import SMALL, TASKS, StateDict


@dataclass(frozen=True)
class Case:
    """A rule with settings, in a chain: an edit, finish or what comes after stands around task arithmetic."""

    rule: Rule
    chain: Chain

    @classmethod
    def of(cls, rule: Rule, settings: Mapping[str, Any]) -> "Case":
        """The case of a rule with `settings`; those without default that are not given are their examples.

        Where no settings are given, all that have an example are.

        Raises:
            ConfigError: a setting that is unknown or refused, or has neither default nor example nor value.
        """
        tree = example_settings(rule.config, required=bool(settings)) | dict(settings)
        fields = rule.config.model_fields
        missing = [name for name, field in fields.items() if field.is_required() and name not in tree]
        if missing and settings.keys() <= fields.keys():
            raise ConfigError(
                f"{rule.name}: {missing[0]} has no default; give the check a value ({missing[0]}=…) "
                "or the setting an example (Field(examples=[…]))"
            )
        named = {"name": rule.name, **tree}
        method = named if rule.kind == "method" else "task_arithmetic"
        edits, finishes = ([named] if rule.kind == kind else [] for kind in ("edit", "finish"))
        return cls(rule, configure(method, edits, finishes, after=named if rule.kind == "after" else None))

    @property
    def step(self) -> Step:
        """The rule's own step."""
        return next(step for step in self.chain.rules if step.rule is self.rule)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the experts that are merged: as many as the method takes."""
        return TASKS[: self.chain.method.rule.models]

    def with_step(self, other: Step) -> Chain:
        """The chain with another step in the place of the rule's own."""
        edits, finishes = (
            tuple(other if step.rule is self.rule else step for step in steps)
            for steps in (self.chain.edits, self.chain.finishes)
        )
        method = other if self.rule.kind == "method" else self.chain.method
        return replace(self.chain, method=method, edits=edits, finishes=finishes)

    @property
    def data(self) -> Lender | None:
        """Random pictures, if a rule looks at some."""
        return RandomLender() if self.chain.looks else None

    def pool(self, models: Mapping[str, Any]) -> ModelPool:
        """Random models, or task vectors, as a pool."""
        return pool_from_memory(models, SMALL)

    def members(self, models: Mapping[str, StateDict]) -> dict[str, StateDict]:
        """The base and as many experts as the method takes, in the order of `models`."""
        return {name: tensors for name, tensors in models.items() if name in (PRETRAINED, *self.tasks)}

    def merged(self, models: Mapping[str, StateDict], chain: Chain | None = None, **options: Any) -> StateDict:
        """Merged tensors by name; `options` are those of `clipfuse.merge`."""
        pool = self.pool(self.members(models))
        return dict(merge(pool, chain or self.chain, data=self.data, **options).tensors)


def fail(how: str) -> NoReturn:
    raise AssertionError(how)


def check_finite(tensors: StateDict) -> None:
    """Raise AssertionError for NaN and Inf."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            fail(f"{name} holds NaN or Inf")


def check_same(found: StateDict, wanted: StateDict, where: str = "") -> None:
    """Raise AssertionError unless all tensors have the same bits."""
    for name, tensor in wanted.items():
        if not torch.equal(found[name], tensor):
            fail(f"{where}{name} has other bits; {difference(found[name], tensor)}")


def check_near(found: StateDict, wanted: StateDict, absolute: float, relative: float) -> None:
    """Raise AssertionError unless |found − wanted| ≤ absolute + relative·|wanted| everywhere."""
    for name, tensor in wanted.items():
        if not ((found[name] - tensor).abs() <= absolute + relative * tensor.abs()).all():
            fail(f"{name} differs; {difference(found[name], tensor)}")


def check_moves(found: StateDict, wanted: StateDict, base: StateDict) -> None:
    """Raise AssertionError unless ‖found − wanted‖ ≤ 1e-4·‖wanted − base‖ + 1e-6 for each tensor."""
    for name, tensor in wanted.items():
        apart, moved = float((found[name] - tensor).norm()), float((tensor - base[name]).norm())
        if not apart <= 1e-4 * moved + 1e-6:
            fail(f"{name} differs by {apart:.3g}, having moved from the base by {moved:.3g}")


def difference(found: Tensor, wanted: Tensor) -> str:
    """Where two tensors differ most, in words."""
    if not found.isfinite().all():
        return "it holds NaN or Inf"
    apart = (found.double() - wanted.double()).abs().flatten()
    worst = int(apart.argmax())
    return (
        f"{int((apart > 0).sum()):,} of {apart.numel():,} entries differ, most of all "
        f"{float(found.flatten()[worst]):.9g} from {float(wanted.flatten()[worst]):.9g}"
    )
