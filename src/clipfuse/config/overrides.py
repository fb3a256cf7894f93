"""The command line's words (Hydra's grammar) laid over a tree: `method=ties_merging modelpool.models.sun397.path=…`."""

from collections.abc import Sequence
from typing import Any

from clipfuse.config.fusionbench import preset_name
from clipfuse.config.presets import is_path, load_preset, presets
from clipfuse.errors import ConfigError, unknown

Tree = dict[str, Any]
CHOICES = ("modelpool", "taskpool", "method")


def apply_overrides(tree: Tree, words: Sequence[str]) -> Tree:
    """A new tree with `words` laid over `tree`: first the choices of whole groups, then single keys, in order.

    Raises:
        ConfigError: a word that is not `key=value`, an unknown preset, or a key that leads nowhere.
    """
    singles = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals and not word.startswith("~"):
            raise ConfigError(f"{word!r}: takes key=value, as in method=task_arithmetic or method.scaling_factor=0.3")
        if key in CHOICES and not value.startswith(("{", "null")):
            tree = {**tree, key: value}
        else:
            singles.append(word)
    tree = {key: choose(key, value) if key in CHOICES else value for key, value in tree.items()}
    return lay_over(tree, singles) if singles else tree


def choose(group: str, value: Any) -> Any:
    """The tree that a preset's name or a path means; what is a tree already stays. `method: NAME` is `{name: NAME}`."""
    if not isinstance(value, str):
        return value
    if group == "method" and not value.endswith((".yaml", ".yml")) and value not in presets("method"):
        return {"name": value}
    if not is_path(value) and value not in presets(group):
        value = preset_name(group, value)
    return load_preset(group, value)


def lay_over(tree: Tree, words: Sequence[str]) -> Tree:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, Sweep
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    def plain_value(override: Override) -> Any:
        value = override.value()
        if isinstance(value, ChoiceSweep):
            return [member for member in value.list]
        if isinstance(value, (Sweep, Glob)):
            return [float(member) for member in override.sweep_string_iterator()]
        return value

    cfg = OmegaConf.create(tree)
    for word in words:
        try:
            override = OverridesParser.create().parse_overrides([word])[0]
            keys = by_index(tree, override.key_or_group.split("."))
            if override.is_delete():
                remove(cfg, keys, word)
                continue
            OmegaConf.update(cfg, ".".join(keys), plain_value(override), merge=True, force_add=True)
        except (HydraException, OmegaConfBaseException, ValueError, IndexError, TypeError, AssertionError) as error:
            raise ConfigError(f"{word!r}: {(str(error).splitlines() or ['cannot be applied'])[0]}") from None
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def remove(cfg: Any, keys: list[str], word: str) -> None:
    from omegaconf import OmegaConf

    parent = OmegaConf.select(cfg, ".".join(keys[:-1])) if keys[:-1] else cfg
    last = int(keys[-1]) if keys[-1].isdigit() and not OmegaConf.is_dict(parent) else keys[-1]
    if parent is None or (OmegaConf.is_dict(parent) and last not in parent):
        raise ConfigError(f"{word!r}: there is no {'.'.join(keys)} to remove")
    del parent[last]


def by_index(tree: Any, keys: list[str]) -> list[str]:
    """Replace names of list members by their index: `modelpool.models.sun397.path` → `modelpool.models.1.path`.

    Raises:
        ConfigError: a name that no member of the list carries, or an index past its end.
    """
    found: list[str] = []
    for key in keys:
        if isinstance(tree, list):
            names = [member.get("name") if isinstance(member, dict) else member for member in tree]
            if not key.lstrip("-").isdigit():
                if key not in names:
                    raise ConfigError(f"{'.'.join(found)}: " + unknown("name", key, [str(n) for n in names if n]))
                key = str(names.index(key))
            elif int(key) >= len(tree):
                raise ConfigError(f"{'.'.join(found)}: has {len(tree)} members; there is no number {key}")
            tree = tree[int(key)]
        else:
            tree = tree.get(key) if isinstance(tree, dict) else None
        found.append(key)
    return found
