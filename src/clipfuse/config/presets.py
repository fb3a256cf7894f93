"""Finding and composing presets: shipped groups, the user's `./config`, and plain files.

A group is a folder of YAML files (`modelpool`, `taskpool`, `method`, `run`). A file with a `defaults:` list is
composed by Hydra's Compose API; nothing is ever instantiated from it.
"""

import os
from pathlib import Path
from typing import Any

import yaml

from clipfuse.config.read import inspect, read_yaml
from clipfuse.errors import ConfigError, unknown

SHIPPED = Path(__file__).parent / "presets"
GROUPS = ("modelpool", "taskpool", "method", "run")


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
        raise ConfigError(unknown(group, value, known) + f"; a path to a YAML file will do as well ({group}=./my.yaml)")
    return known[value]


def load_preset(group: str, value: str) -> dict[str, Any]:
    """The tree of `group=value`, a preset's name or a path, interpolations resolved inside the file.

    Raises:
        ConfigError: the file is not there, not plain YAML, or does not compose.
    """
    path = preset_path(group, value)
    tree = read_yaml(path)
    if "defaults" in tree:
        tree = compose(group, path)
    return resolve(tree, str(path))


def resolve(tree: dict[str, Any], where: str) -> dict[str, Any]:
    """A plain tree with its `${…}` filled in from itself."""
    if "${" not in str(tree):
        return tree
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def compose(group: str, path: Path) -> dict[str, Any]:
    """Compose a file with a `defaults:` list; its own folder tree comes before the shipped presets."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    root = next((parent for parent in path.resolve().parents if (parent / group) in path.resolve().parents), None)
    name = path.resolve().relative_to(root or path.resolve().parent).with_suffix("").as_posix()
    try:
        with initialize_config_dir(str(root or path.resolve().parent), job_name="clipfuse", version_base="1.3"):
            cfg = hydra_compose(name, overrides=[f"hydra.searchpath=['file://{SHIPPED}']"])
        tree = OmegaConf.to_container(cfg, resolve=False)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
    assert isinstance(tree, dict)
    plain = {str(key): value for key, value in tree.items()}
    inspect(plain, str(path))
    return plain[group] if root is not None and set(plain) == {group} else plain
