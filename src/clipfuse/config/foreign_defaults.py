"""`defaults:` lists of FusionBench in files that stand alone, outside its config tree: a table tells what they mean.

Where the groups of its tree are on disk beside a file, Hydra composes it instead; see presets.py.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from clipfuse.config.fusionbench_pools import COMPOSED, MISSING, PRETRAINED
from clipfuse.config.read import read_yaml
from clipfuse.errors import ConfigError, unknown

Tree = dict[str, Any]

ENTRY = re.compile(r"((override|optional)\s+)*/?(?P<group>[\w./-]+)(@(?P<package>[A-Za-z][\w.]*)?)?")
BASE = re.compile(r"(?P<base>clip-vit-(base-patch32|base-patch16|large-patch14))(_(?P<rest>.+))?")
SUITE = re.compile(r"(?P<eight>the_eight_tasks|eight_tasks)|TALL(?P<count>10|12|14|16|18|20)")

TEMPLATES: dict[str, Tree] = {
    "CLIPVisionModelPool": {"_target_": "fusion_bench.modelpool.CLIPVisionModelPool", "models": MISSING},
    "CLIPVisionModelTaskPool": {
        "_target_": "fusion_bench.taskpool.CLIPVisionModelTaskPool",
        "test_datasets": MISSING,
        "base_model": "openai/clip-vit-base-patch32",
    },
}
"""What their files `_template.yaml` say, of what has a meaning here."""


@cache
def twenty() -> tuple[str, ...]:
    """The field's twenty tasks in order; every suite of fewer is a beginning."""
    return tuple(read_yaml(Path(__file__).parent / "presets/taskpool/TALL20.yaml")["tasks"])


def suite(name: str) -> tuple[str, ...]:
    """The tasks of one of their suites, or the one task of that name."""
    if match := SUITE.fullmatch(name):
        return twenty()[: 8 if match["eight"] else int(match["count"])]
    return (name,)


def models(name: str) -> Tree:
    """`clip-vit-base-patch32` is the base, `…_sun397` an expert, `…_eight_tasks` and `…_TALL20` the base and experts.

    Raises:
        ConfigError: with the nearest known name.
    """
    match = BASE.fullmatch(name)
    if not match:
        raise ConfigError(
            unknown("model", name, ("clip-vit-base-patch32_sun397", "clip-vit-large-patch14_eight_tasks"))
        )
    base, rest = match["base"], match["rest"]
    tasks = suite(rest) if rest else ()
    for task in tasks:
        if task not in twenty():
            raise ConfigError(unknown("model", name, [f"{base}_{known}" for known in twenty()]))
    own = {PRETRAINED: f"openai/{base}"} if len(tasks) != 1 else {}
    return own | {task: f"tanganke/{base}_{task}" for task in tasks}


def datasets(split: str) -> Callable[[str], Tree]:
    """Names of data sets or suites → their entries; whether a task is known is asked when it is needed."""
    return lambda name: {task: {"split": split} for task in suite(name)}


def template(group: str) -> Callable[[str], Tree]:
    def found(name: str) -> Tree:
        if name != "_template":
            raise ConfigError(unknown("template", name, ["_template"]))
        return TEMPLATES[group]

    return found


GROUPS: dict[str, Callable[[str], Tree]] = {
    **{group: template(group) for group in TEMPLATES},
    "model/clip-vit": models,
    **{f"dataset/image_classification/{split}": datasets(split) for split in ("train", "val", "test")},
}
"""Groups of their tree → what a name in it composes to."""


def group_of(key: str) -> str | None:
    """The group of GROUPS that an entry's key means, None if it is none."""
    match = ENTRY.fullmatch(key)
    group = re.sub(r"^(modelpool|taskpool)/", "", match["group"]) if match else None
    return group if group in GROUPS else None


def entries(tree: Tree) -> Iterator[tuple[str, Any]]:
    """Keys and values of a `defaults:` list; what is no mapping has the value None."""
    listed = tree.get("defaults")
    for entry in listed if isinstance(listed, list) else []:
        yield from (
            (str(key), value) for key, value in (entry.items() if isinstance(entry, Mapping) else [(entry, None)])
        )


def stands_alone(tree: Tree, root: Path | None, group: str) -> bool:
    """Whether a file's `defaults:` name groups of FusionBench's tree that are not on disk under `root`."""
    named = {found for key, _ in entries(tree) if (found := group_of(key))}
    if root is None:
        return bool(named)
    places = [root / group / name / "_template.yaml" if name in TEMPLATES else root / name for name in named]
    return not all(place.exists() for place in places)


def compose_by_table(tree: Tree, where: str) -> Tree:
    """The tree that a file's `defaults:` and its own keys make together, `_self_` last unless it says otherwise.

    Raises:
        ConfigError: an entry that is not in the table, or a name that is not in its group.
    """
    parts: list[Tree] = []
    notes: list[str] = []
    own = {key: value for key, value in tree.items() if key != "defaults"}
    for key, value in [*entries(tree), *([("_self_", None)] if "_self_" not in dict(entries(tree)) else [])]:
        if key == "_self_":
            parts.append(own)
            continue
        group, match = group_of(key), ENTRY.fullmatch(key)
        if group is None or match is None or "@" not in key:
            raise ConfigError(f"{where}: defaults: {unknown('entry', key, [f'/{known}@KEY' for known in GROUPS])}")
        found: Tree = {}
        for name in value if isinstance(value, list) else [value]:
            try:
                found |= GROUPS[group](str(name))
            except ConfigError as error:
                raise ConfigError(f"{where}: defaults: {key}: {error}") from None
        parts.append(nest(found, match["package"]))
        named = shortened(value if isinstance(value, list) else [value])
        ours = found.get("_target_") or shortened(found.values() if group == "model/clip-vit" else found)
        notes += [f"{key}: {named} is read as {ours}"] if ours != named else []
    composed: Tree = {}
    for part in parts:
        composed = laid_over(composed, part)
    return composed | {COMPOSED: notes}


def shortened(words: Iterable[Any]) -> str:
    first = list(map(str, words))
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")


def nest(tree: Tree, package: str | None) -> Tree:
    """The tree at a dotted place."""
    for key in reversed(package.split(".") if package else []):
        tree = {key: tree}
    return tree


def laid_over(below: Tree, above: Tree) -> Tree:
    """A tree laid over another: mappings are joined, key by key, everything else is replaced, by `???` not."""
    joined = dict(below)
    for key, value in above.items():
        under = joined.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            joined[key] = laid_over(under, value)
        elif value != MISSING or key not in joined:
            joined[key] = value
    return joined
