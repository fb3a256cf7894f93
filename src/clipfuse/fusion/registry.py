"""Names → methods, edits and finishes: the one place where a word becomes a rule."""

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from clipfuse.config import Config, example_settings
from clipfuse.errors import ConfigError, unknown
from clipfuse.fusion.origin import Origin, origin_of
from clipfuse.fusion.paper import Paper
from clipfuse.pool.view import Grain

Kind = Literal["method", "edit", "finish", "after"]
Uses = Literal["train_images", "train_labels", "val_images", "val_labels", "test_images"]
Returns = Literal["delta", "weights"]
Shape = tuple[int, ...]
Memory = tuple[float, float]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class DeltaConfig(Config):
    """Settings of every method that returns a task vector."""

    scaling_factor: float = 1.0
    """λ in θ0 + λΔ, dimensionless; applied by the engine."""


class ContinualConfig(DeltaConfig):
    """Settings of every method that experts arrive at one at a time."""

    shuffle: bool = False
    """Let experts arrive in an order drawn from `seed` and their names, not in the pool's."""
    seed: int = 0
    """For the order of arrival."""


@dataclass(frozen=True)
class Norms:
    """Euclidean norms over the whole model, float64: what `rescale` gets."""

    merged: float
    """‖S‖ of what the method returned last."""
    experts: tuple[float, ...]
    """‖τ_k‖, one an expert merged so far, in order."""


@dataclass(frozen=True)
class Rule:
    """A registered method, edit, finish or what comes after them: its function, its settings, and what it needs."""

    kind: Kind
    name: str
    function: Callable[..., Any]
    config: type[Config]
    paper: Paper
    grain: Grain
    returns: Returns = "delta"
    models: int | None = None
    """Number of experts it takes; None is any."""
    prepare: Callable[..., Any] | None = None
    """`(view, cfg) → state`, called once with the whole pool seen through the edits."""
    passes: int = 0
    """Times that `prepare` reads the whole pool, as a rule; 0 promises that it reads no weights."""
    uses: tuple[Uses, ...] | Callable[[Any], tuple[Uses, ...]] = ()
    """What it has seen besides weights, with its settings."""
    looks: bool | Callable[[Any], bool] = True
    """Whether it looks at what it `uses` itself; else somebody has done so for it, and it needs no images."""
    affine_in: str | None = None
    """A setting that the result is affine in: the engine evaluates it at 0 and 1 and goes the rest of the way."""
    continual: bool = False
    """Whether experts arrive one at a time: the function gets leaves of what is merged so far and the next expert."""
    rescale: Callable[[Norms], float] | None = None
    """One global factor, applied after all leaves: Δ = factor · S."""
    sees_experts: bool = True
    """Whether a finish looks at the experts' task vectors; `add` has only those of the expert that it adds."""
    memory: Memory = (4.0, 0.0)
    """Most memory that work on a leaf takes, in sizes of one float32 task vector: for each expert, and besides."""
    work: Callable[[Shape, int, Any], float] | None = None
    """`(shape, experts, cfg) → FLOP` for one parameter, of a rule whose cost is not that of reading."""
    origin: Origin | None = None
    """Where a plug-in's rule is from; None for clipfuse's own."""

    def sizes(self, experts: int) -> float:
        """Most memory that work on a leaf of so many experts takes, in sizes of one float32 task vector."""
        return self.memory[0] * experts + self.memory[1]

    @property
    def uses_by_default(self) -> tuple[Uses, ...]:
        """What it sees with its default settings."""
        if not callable(self.uses):
            return self.uses
        return self.uses(self.config.model_validate(example_settings(self.config)))

    @property
    def streams(self) -> bool:
        """Whether the function is a generator `(view, cfg, run) → (name, Δ)` over the whole pool."""
        return inspect.isgeneratorfunction(inspect.unwrap(self.function))

    @property
    def ordered(self) -> bool:
        """Whether experts have places: another order of theirs may give another result."""
        return self.continual or self.models == 2

    @property
    def summary(self) -> str:
        """First line of the rule's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def formula(self) -> str:
        """First line of the configuration's docstring."""
        return (inspect.getdoc(self.config) or "").partition("\n")[0]


METHODS: dict[str, Rule] = {}
EDITS: dict[str, Rule] = {}
FINISHES: dict[str, Rule] = {}
AFTERS: dict[str, Rule] = {}
TABLES: dict[Kind, dict[str, Rule]] = {"method": METHODS, "edit": EDITS, "finish": FINISHES, "after": AFTERS}


def register(kind: Kind, **facts: Any) -> Decorator:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        name, code = function.__name__, inspect.unwrap(function).__code__
        place = f"{code.co_filename}:{code.co_firstlineno}"
        taken = TABLES[kind].get(name)
        if taken and {taken.function.__module__, function.__module__} != {"__main__"}:  # a notebook's cell, run again
            where = Path(inspect.unwrap(taken.function).__code__.co_filename)
            raise ConfigError(f"{place}: the name {name!r} is taken by the {kind} of {where.parent.name}/{where.name}")
        config = get_type_hints(function).get("cfg")
        is_delta = kind == "method" and facts["returns"] == "delta"
        wanted = ContinualConfig if facts.get("continual") else DeltaConfig if is_delta else Config
        if not (isinstance(config, type) and issubclass(config, wanted)):
            takes = f"the class of its settings as annotation, a {wanted.__name__}: cfg: MySettings"
            raise ConfigError(f"{place}: {name}: its parameter cfg needs {takes}")
        TABLES[kind][name] = Rule(kind, name, function, config, **facts, origin=origin_of(function))
        return function

    return add


def method(
    *,
    paper: Paper,
    grain: Grain,
    returns: Returns = "delta",
    models: int | None = None,
    prepare: Callable[..., Any] | None = None,
    passes: int = 0,
    uses: tuple[Uses, ...] | Callable[[Any], tuple[Uses, ...]] = (),
    looks: bool | Callable[[Any], bool] = True,
    affine_in: str | None = None,
    continual: bool = False,
    rescale: Callable[[Norms], float] | None = None,
    memory: Memory = (4.0, 0.0),
    work: Callable[[Shape, int, Any], float] | None = None,
) -> Decorator:
    """Register a method under its function's name.

    The function is `(leaf, cfg[, state]) → Tensor (*shape)`, a merged task vector or merged weights; or a generator
    `(view, cfg, run) → (name, Δ)` where a leaf at a time is too little. With `continual`, leaves have two task
    vectors, what is merged so far and the next expert's, and the function returns what is merged then.
    """
    return register(
        "method", paper=paper, grain=grain, returns=returns, models=models, prepare=prepare, passes=passes, uses=uses,
        looks=looks, affine_in=affine_in, continual=continual, rescale=rescale, memory=memory, work=work,
    )  # fmt: skip


def edit(
    *,
    paper: Paper,
    grain: Grain,
    prepare: Callable[..., Any] | None = None,
    passes: int = 0,
    memory: Memory = (4.0, 0.0),
    work: Callable[[Shape, int, Any], float] | None = None,
) -> Decorator:
    """Register `(leaf, cfg[, state]) → Tensor (task, *shape)` under its own name: edited task vectors."""
    return register("edit", paper=paper, grain=grain, prepare=prepare, passes=passes, memory=memory, work=work)


def finish(
    *,
    paper: Paper,
    grain: Grain,
    prepare: Callable[..., Any] | None = None,
    passes: int = 0,
    sees_experts: bool = True,
    memory: Memory = (4.0, 0.0),
    work: Callable[[Shape, int, Any], float] | None = None,
) -> Decorator:
    """Register `(leaf, delta, cfg[, state]) → Tensor (*shape)` under its own name: a finished merged task vector.

    `leaf` is as it was before the edits; with `sees_experts=False` the function promises not to look at its experts.
    """
    return register(
        "finish", paper=paper, grain=grain, prepare=prepare, passes=passes, sees_experts=sees_experts, memory=memory,
        work=work,
    )  # fmt: skip


def after(*, paper: Paper, uses: tuple[Uses, ...] | Callable[[Any], tuple[Uses, ...]] = ()) -> Decorator:
    """Register `(view, cfg, run, forward) → {expert: {name: Tensor}}` under its own name: small tensors for each task.

    It learns them on the merged encoder, whose final weights are in `forward`; inference must then know the task.
    """
    return register("after", paper=paper, grain="leaf", uses=uses)


def find(kind: Kind, name: str) -> Rule:
    """The rule of a name, installed plug-ins' too. Raises ConfigError with the nearest known name."""
    return find_in([TABLES[kind]], kind, name)


def find_any(name: str) -> Rule:
    """The rule of a name, of any kind. Raises ConfigError with the nearest known name."""
    return find_in(TABLES.values(), "method, edit, finish or after", name)


def find_in(tables: Collection[dict[str, Rule]], what: str, name: str) -> Rule:
    """The first rule of a name; only one that is not clipfuse's own makes the installed plug-ins be imported."""
    if not any(name in table for table in tables):
        from clipfuse.fusion.loading import load_installed

        load_installed()
    for table in tables:
        if name in table:
            return table[name]
    for kind, table in TABLES.items():
        if name in table:
            place = {"edit": f"edits=[{name}]", "finish": f"finishes=[{name}]"}.get(kind, f"{kind}={name}")
            raise ConfigError(f"{name!r} is no {what}: write {place}")
    raise ConfigError(unknown(what, str(name), {known for table in tables for known in table}))
