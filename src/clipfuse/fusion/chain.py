"""Chains: edits, one method, finishes, with their checked settings: everything that is done to a leaf."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from clipfuse.errors import ConfigError
from clipfuse.fusion.registry import EDITS, FINISHES, Origin, Shape, Uses, find
from clipfuse.fusion.step import Step, call, parse_step
from clipfuse.pool import Leaf, ModelPool, PoolView
from clipfuse.pool.view import Grain, coarsest


def behind(edits: Sequence[Step], view: PoolView) -> tuple[PoolView, list[Any]]:
    """The view through some edits, and the state of each, prepared on what it sees through those before it."""
    done: list[Callable[[Leaf], Tensor]] = []
    states: list[Any] = []
    grain: Grain = "element"
    for edit in edits:
        states.append(edit.rule.prepare(view.through(done, grain), edit.cfg) if edit.rule.prepare else None)
        done.append(partial(call, edit, states[-1]))
        grain = coarsest(grain, edit.rule.grain)
    return view.through(done, grain), states


@dataclass(frozen=True)
class Chain:
    """Edits, one method, finishes: everything that is done to a leaf."""

    method: Step
    edits: tuple[Step, ...] = ()
    finishes: tuple[Step, ...] = ()
    seed: int = 0
    swept: str = "scaling_factor"
    """The method's setting that `values` are for."""
    values: tuple[float, ...] = ()
    """Values to choose from, if there is more than one; the method's own is then the first."""
    chosen_on: tuple[Uses, ...] = ()
    """Data that the choice of a setting has seen."""
    chosen_data: tuple[Mapping[str, Any], ...] = ()
    """The same as rows of the ledger."""
    after: Step | None = None
    """What is learned for each task on the merged encoder."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """What is done to a leaf, in order."""
        return (*self.edits, self.method, *self.finishes)

    @property
    def rules(self) -> tuple[Step, ...]:
        """All steps, with the one after the merge."""
        return (*self.steps, *([self.after] if self.after else []))

    @property
    def grain(self) -> Grain:
        """The coarsest grain of its steps."""
        grains: list[Grain] = [step.rule.grain for step in self.steps]
        return coarsest(*grains)

    @property
    def needs_base(self) -> bool:
        return self.method.rule.returns == "delta" or bool(self.finishes)

    @property
    def uses(self) -> tuple[Uses, ...]:
        """What the chain with its settings sees besides weights."""
        seen: dict[Uses, None] = {}
        for step in self.rules:
            seen |= dict.fromkeys(step.uses)
        return tuple(seen | dict.fromkeys(self.chosen_on))

    @property
    def edit_trees(self) -> tuple[dict[str, Any], ...]:
        """The edits, as in YAML."""
        return tuple(step.to_tree() for step in self.edits)

    @property
    def looks(self) -> bool:
        """Whether a step must be lent images to work."""
        return any(step.looks for step in self.rules)

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Files of those rules that are not clipfuse's own."""
        return tuple(dict.fromkeys(step.rule.origin for step in self.rules if step.rule.origin))

    @property
    def title(self) -> str:
        """What a table calls it: `dare + ties_merging`."""
        return " + ".join(step.rule.name for step in self.rules)

    @property
    def passes(self) -> int:
        """Times that the pool is read."""
        return 1 + sum(step.rule.passes for step in self.steps)

    def to_learn(self) -> dict[str, Any]:
        """What steps of the method depend on: all but λ and what comes after it."""
        return replace(self, finishes=(), values=(), after=None).with_setting("scaling_factor", 0.0).to_tree()

    def to_tree(self) -> dict[str, Any]:
        """As in YAML: method, edits, finishes, after, seed."""
        lists = {"edits": list(self.edit_trees), "finishes": [s.to_tree() for s in self.finishes]}
        method = self.method.to_tree()
        if self.values:
            method[self.swept] = list(self.values)
        after = {"after": self.after.to_tree()} if self.after else {}
        return {"method": method, **{k: v for k, v in lists.items() if v}, **after, "seed": self.seed}

    def with_value(
        self, value: float, chosen_on: tuple[Uses, ...] = (), looked: tuple[Mapping[str, Any], ...] = ()
    ) -> "Chain":
        """The same chain with one value of the swept setting, and what its choice has seen."""
        return replace(self.with_setting(self.swept, value), values=(), chosen_on=chosen_on, chosen_data=looked)

    def with_setting(self, name: str, value: float) -> "Chain":
        """The same chain with another value of one of the method's settings."""
        cfg = self.method.cfg.model_copy(update={name: value})
        return replace(self, method=Step(self.method.rule, cfg))

    @property
    def scaling_factor(self) -> float:
        """λ of a method that has one, else 1."""
        return getattr(self.method.cfg, "scaling_factor", 1.0)

    @property
    def symbol(self) -> str:
        """What tables call the swept setting."""
        return "λ" if self.swept == "scaling_factor" else self.swept

    def at_once(self, experts: int) -> int:
        """How many task vectors are in work at a time: a continual method has what is merged and the next one."""
        return min(2, experts) if self.method.rule.continual else experts

    def appetite(self, experts: int) -> float:
        """Most memory that work on a leaf takes, in sizes of all its float32 task vectors."""
        return max(step.rule.sizes(self.at_once(experts)) for step in self.steps) / experts

    def work(self, shapes: Iterable[Shape], experts: int) -> float:
        """FLOP of decompositions and the like, where rules know theirs; of both ends of an affine setting."""
        found = 0.0
        for shape in shapes:
            for step in self.steps:
                if step.rule.work and step.rule.affine_in:
                    ends = [step.cfg.model_copy(update={step.rule.affine_in: value}) for value in (0.0, 1.0)]
                    found += sum(step.rule.work(shape, experts, cfg) for cfg in ends)
                elif step.rule.work:
                    found += step.rule.work(shape, experts, step.cfg)
        return found

    def reads(self, pool: ModelPool) -> int:
        """Bytes that a pass reads: each model once, the base again for each expert that arrives alone."""
        base = pool.base.nbytes if pool.base is not None and self.method.rule.continual else 0
        return pool.nbytes + base * (len(pool) - 1)


def configure(
    method: str | Mapping[str, Any],
    edits: Sequence[str | Mapping[str, Any]] = (),
    finishes: Sequence[str | Mapping[str, Any]] = (),
    seed: int = 0,
    after: str | Mapping[str, Any] | None = None,
) -> Chain:
    """Check a method with its edits and finishes. A list for a setting that can be swept gives `Chain.values`.

    Swept can be `scaling_factor` and the setting that a rule is affine in: a sweep merges once.

    Raises:
        ConfigError: an unknown name or setting, a wrong type, or edits on a method that merges weights.
    """
    tree: dict[str, Any] = {"name": method} if isinstance(method, str) else dict(method)
    swept, values = take_list(tree) if isinstance(tree.get("name"), str) else ("scaling_factor", ())
    for name, part in (("edits", edits), ("finishes", finishes)):
        if isinstance(part, (str, Mapping)) or not isinstance(part, Sequence):
            raise ConfigError(
                f"{name}: takes a list, as in {name}=[{next(iter(EDITS if name == 'edits' else FINISHES))}]"
            )
    for value in values:  # each must be one that the method takes
        parse_step("method", {**tree, swept: value}, "method")
    chosen = parse_step("method", tree, "method")
    chain = Chain(
        chosen,
        tuple(parse_step("edit", part, f"edits.{number}") for number, part in enumerate(edits)),
        tuple(parse_step("finish", part, f"finishes.{number}") for number, part in enumerate(finishes)),
        seed,
        swept,
        values if len(values) > 1 else (),
        after=None if after is None else parse_step("after", after, "after"),
    )
    for part in chain.rules:
        if "test_images" in part.uses and not getattr(part.cfg, "allow_test_adaptation", False):
            raise ConfigError(
                f"{part.rule.name}: sees the test images that it is scored on (transductive); "
                f"{'after' if part is chain.after else 'method'}.allow_test_adaptation=true allows that"
            )
    given = getattr(chosen.cfg, "found", None)
    if given and (before := list(map(dict, given.edits))) != list(chain.edit_trees):
        behind = ", ".join(str(edit.get("name")) for edit in before) or "no edits"
        raise ConfigError(
            f"method.weights: its coefficients are of task vectors behind {behind}: give the same edits=[…]"
        )
    if chain.edits and chosen.rule.returns == "weights":
        raise ConfigError(f"method.{chosen.rule.name}: merges weights, not task vectors, and takes no edits")
    return chain


def take_list(tree: dict[str, Any]) -> tuple[str, tuple[float, ...]]:
    """The swept setting and its values; in `tree`, the first takes the list's place. Raises ConfigError."""
    rule = find("method", tree["name"])
    fields, swept = rule.config.model_fields, ("scaling_factor", rule.affine_in)
    lists = [
        key
        for key, value in tree.items()
        if isinstance(value, (list, tuple))
        and key in fields
        and (key in swept or fields[key].annotation in (float, int))
    ]
    for key in lists:
        if key not in swept or len(lists) > 1:
            allowed = " or ".join(name for name in swept if name in fields) or "no setting of this method"
            raise ConfigError(f"method.{key}: takes one number; {allowed} takes a list to choose from, one at a time")
    if not lists:
        return "scaling_factor", ()
    found = list(tree[lists[0]])
    if not found or not all(type(value) in (int, float) for value in found):
        raise ConfigError(f"method.{lists[0]}: takes a number or a list of numbers (found {found!r})")
    values = tuple(dict.fromkeys(float(value) for value in found))
    tree[lists[0]] = values[0]
    return lists[0], values
