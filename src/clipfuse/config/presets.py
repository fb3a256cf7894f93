"""Finding and composing presets: shipped groups, the user's `./config`, and plain files.

A group is a folder of YAML files (`modelpool`, `taskpool`, `method`, `recipe`, `run`). A file with a `defaults:` list
is composed by Hydra's Compose API, or by a table where it names FusionBench's groups and they are not there; nothing is
ever instantiated from it.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from clipfuse.config.foreign_defaults import compose_by_table, stands_alone
from clipfuse.config.fusionbench_pools import IGNORED, MISSING, spent_keys
from clipfuse.config.pool_folder import folder_pool
from clipfuse.config.read import inspect, read_yaml
from clipfuse.errors import ConfigError, unknown

SHIPPED = Path(__file__).parent / "presets"
INSIDE = "a file may interpolate only inside itself"
MAX_FILLED, MAX_CHARACTERS = 10_000, 64 << 20
GROUPS = ("modelpool", "taskpool", "method", "recipe", "run")

PATH = "a path to a YAML file will do as well ({group}=./my.yaml)"
ALSO = {
    "modelpool": "a path to a YAML file or a folder of models will do as well (modelpool=./my.yaml)",
    "taskpool": PATH + ", and so will tasks by themselves (taskpool.tasks=[{value}])",
}
"""What a group takes besides names of presets."""


def presets(group: str) -> dict[str, Path]:
    """Names of a group → file: the package's, and over them those of `./config/<group>/`."""
    found: dict[str, Path] = {}
    for root in (SHIPPED, Path("config")):
        folder = root / group
        for path in sorted(folder.rglob("*.yaml")):
            found[path.relative_to(folder).with_suffix("").as_posix()] = path
    return found


def is_path(value: str) -> bool:
    """Whether a word means a file: it ends like one or stands on disk as one."""
    return value.endswith((".yaml", ".yml")) or os.path.isfile(value)


def preset_path(group: str, value: str) -> Path:
    """The file that `group=value` means. Raises ConfigError with the nearest known name."""
    if is_path(value):
        path = Path(os.path.expanduser(value))
        if not os.path.isfile(path):
            raise ConfigError(f"{group}={value}: no such file")
        return path
    known = presets(group)
    if value not in known:
        raise ConfigError(unknown(group, value, known) + f"; {ALSO.get(group, PATH).format(group=group, value=value)}")
    return known[value]


def load_preset(group: str, value: str) -> dict[str, Any]:
    """The tree of `group=value`, a preset's name or a path, interpolations resolved inside the file.

    Raises:
        ConfigError: the file is not there, not plain YAML, or does not compose.
    """
    if group == "modelpool" and os.path.isdir(os.path.expanduser(value)) and value not in presets(group):
        return folder_pool(Path(value).expanduser())
    path = preset_path(group, value)
    tree = read_yaml(path)
    if "defaults" in tree:
        root = root_of(group, path)
        alone = stands_alone(tree, root, group)
        tree = compose_by_table(tree, str(path)) if alone else compose(group, path, root)
    spent = spent_keys(group, tree)
    resolved = resolve(group, tree, str(path), (*spent, *IGNORED.get(group, ())))
    return {key: value for key, value in resolved.items() if key not in spent}


def resolve(group: str, tree: dict[str, Any], where: str, but: Sequence[str]) -> dict[str, Any]:
    """A plain tree with its `${…}` filled in from itself, `but` for some keys; it may name itself by its group."""
    if "${" not in str(tree):
        return tree
    refuse_growth(tree, where)
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

    resolved, place = dict(tree), where
    try:
        found = OmegaConf.create({**tree, group: tree})[group]
        for key in [key for key in tree if key not in but and tree[key] != MISSING]:
            place = f"{where}: {key}"
            value = found[key]
            resolved[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        hint = "" if isinstance(error, InterpolationToMissingValueError) else f"; {INSIDE}"
        raise ConfigError(f"{place}: {str(error).splitlines()[0]}{hint}") from None
    return resolved


def refuse_growth(tree: dict[str, Any], where: str) -> None:
    """Refuse values that refer to values that refer to others, … into something huge.

    Raises:
        ConfigError: a bound on how often values are filled in, or on the characters of all, is too large.
    """
    whole = str(tree)
    referred = {re.split(r"[.\[\]]+", found.rstrip("]"))[-1] for found in re.findall(r"\$\{([^{}]*)", whole)}
    often, largest, stack = whole.count("${"), 1, list[Any]([tree])
    while stack and often <= MAX_FILLED:
        node = stack.pop()
        items = (
            list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        )
        for key, value in items:
            if str(key) in referred:
                text = str(value)
                often, largest = often * max(1, text.count("${")), max(largest, len(text))
        stack += [value for _, value in items]
    if often > MAX_FILLED or often * largest > MAX_CHARACTERS:
        raise ConfigError(f"{where}: its ${{…}} refer to what refers to more, too often")


def root_of(group: str, path: Path) -> Path | None:
    """The folder of groups that a file is in: the parent of its group's folder."""
    parents = path.resolve().parents
    return next((parent for parent in parents if (parent / group) in parents), None)


def compose(group: str, path: Path, root: Path | None) -> dict[str, Any]:
    """Compose a file with a `defaults:` list; its own folder tree comes before the shipped presets."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    words = [f"hydra.searchpath=['file://{SHIPPED}']"]
    name: str | None = path.stem
    if root is not None:  # as one of its group: entries of its list are relative to the group then
        option = path.resolve().relative_to(root / group).with_suffix("").as_posix().replace("'", r"\'")
        name, words = None, [f"+{group}='{option}'", *words]
    try:
        with initialize_config_dir(str(root or path.resolve().parent), job_name="clipfuse", version_base="1.3"):
            cfg = hydra_compose(name, overrides=words)
        tree = OmegaConf.to_container(cfg, resolve=False)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
    assert isinstance(tree, dict)
    plain = {str(key): value for key, value in tree.items()}
    inspect(plain, str(path))
    return plain[group] if root is not None and set(plain) == {group} else plain
