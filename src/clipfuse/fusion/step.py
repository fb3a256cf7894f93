"""A rule with its checked settings: a step of a chain."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clipfuse.config import parse
from clipfuse.errors import ConfigError
from clipfuse.fusion.registry import TABLES, Kind, Rule, Uses, find
from clipfuse.pool import Leaf


@dataclass(frozen=True)
class Step:
    """A rule with its checked settings."""

    rule: Rule
    cfg: Any

    @property
    def uses(self) -> tuple[Uses, ...]:
        """What the rule with its settings has seen besides weights."""
        uses = self.rule.uses
        return uses(self.cfg) if callable(uses) else uses

    @property
    def looks(self) -> bool:
        """Whether the rule with its settings must be lent images."""
        looks = self.rule.looks
        return bool(self.uses) and (looks(self.cfg) if callable(looks) else looks)

    def to_tree(self) -> dict[str, Any]:
        """Name and settings, as in YAML."""
        return {"name": self.rule.name, **self.cfg.model_dump(mode="json")}


def call(step: Step, state: Any, leaf: Leaf, *delta: Tensor) -> Tensor:
    """A step's function on a leaf, its state appended if it prepares one. Raises ConfigError for another shape."""
    made = step.rule.function(leaf, *delta, step.cfg, *([state] if step.rule.prepare else []))
    shape = tuple(leaf.stored_experts[0].shape)
    wanted = (len(leaf.tasks), *shape) if step.rule.kind == "edit" else shape
    if not isinstance(made, Tensor) or made.shape != wanted:
        found = tuple(made.shape) if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise ConfigError(f"{step.rule.name}: gave {found} for {leaf.name}, it takes {wanted}")
    return made


def parse_step(kind: Kind, tree: str | Mapping[str, Any], where: str) -> Step:
    """`"dare"` or `{"name": "dare", "drop": 0.9}` → the rule and its checked settings."""
    tree = {"name": tree} if isinstance(tree, str) else tree
    if not isinstance(tree, Mapping) or not isinstance(tree.get("name"), str):
        raise ConfigError(f"{where}: takes a name, or name and settings such as {{name: {next(iter(TABLES[kind]))}}}")
    rule = find(kind, tree["name"])
    settings = {key: value for key, value in tree.items() if key != "name"}
    return Step(rule, parse(rule.config, settings, where))
