"""The command line's words (Hydra's grammar) laid over a tree: `method=ties_merging modelpool.models.sun397.path=…`."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from clipfuse.config.fusionbench import preset_name
from clipfuse.config.presets import is_path, load_preset, presets
from clipfuse.errors import ConfigError, unknown

Tree = dict[str, Any]
CHOICES = ("modelpool", "taskpool", "method", "after")


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
    """The tree that a preset's name or a path means; a tree stays. `method: NAME` is `{name: NAME}`, `after` alike."""
    if not isinstance(value, str):
        return value
    if group == "after":
        return {"name": value}
    if group == "method" and not value.endswith((".yaml", ".yml")) and value not in presets("method"):
        return {"name": value}
    if not is_path(value) and value not in presets(group):
        value = preset_name(group, value)
    tree = load_preset(group, value)
    return {"tasks": [value]} if group == "taskpool" and "classes" in tree else tree  # a task by itself


def lay_over(tree: Tree, words: Sequence[str]) -> Tree:
    """Assign or remove (`~key`) single keys, in order, in a copy of the tree."""
    from hydra.errors import HydraException

    tree = deepcopy(tree)
    for word in words:
        try:
            name, _, text = word.removeprefix("~").partition("=")
            parent, key = find_parent(tree, name.lstrip("+").split("."))
            if word.startswith("~"):
                del parent[key]
            else:
                parent[key] = value_of(word, text)
        except (HydraException, ValueError) as error:
            found = (str(error).splitlines() or ["is not key=value"])[0]
            raise ConfigError(f"{word!r}: is not understood; quote what is not a plain word ({found})") from None
        except KeyError as error:
            raise ConfigError(f"{word!r}: there is no {error.args[0]!r} to remove") from None
        except ConfigError as error:
            raise ConfigError(f"{word!r}: {error}") from None
    return tree


def value_of(word: str, text: str) -> Any:
    """A word's value by Hydra's grammar; a path, and what that grammar refuses, is text as it stands."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if text.startswith((".", "/", "~")):
        return text
    try:
        return plain_value(OverridesParser.create().parse_overrides([word])[0])
    except HydraException:
        if text.startswith(("[", "{", "'", '"')):
            raise
        return text


def plain_value(override: Any) -> Any:
    """The value of one of Hydra's overrides; `0.1,0.2` and `range(…)` become lists."""
    from hydra.core.override_parser.types import ChoiceSweep, Glob, Sweep

    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [getattr(member, "text", member) for member in value.list]
    return [float(member) for member in override.sweep_string_iterator()] if isinstance(value, (Sweep, Glob)) else value


def find_parent(tree: Any, keys: list[str]) -> tuple[Any, Any]:
    """What holds the last key, and that key: an index where it is a list. Absent mappings on the way are made.

    Members of lists go by index or by name: `modelpool.models.sun397.path` is `modelpool.models.1.path`, and a member
    that is a mere name becomes `{name: …}` when one of its keys is assigned.

    Raises:
        ConfigError: a name that no member carries, an index past the end, or a key inside a plain value.
    """
    for depth, word in enumerate(keys):
        place = ".".join(keys[:depth])
        key: Any = word
        if isinstance(tree, list):
            key = member_index(tree, word, place)
        elif not isinstance(tree, dict):
            raise ConfigError(f"{place} is {tree!r} and has no keys")
        if depth == len(keys) - 1:
            return tree, key
        if isinstance(tree, list) and isinstance(tree[key], str):
            tree[key] = {"name": tree[key]}
        elif isinstance(tree, dict) and tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
    raise ConfigError("takes key=value")


def member_index(members: list[Any], word: str, place: str) -> int:
    if word.isdigit():
        if int(word) >= len(members):
            raise ConfigError(f"{place} has {len(members)} members; there is no number {word}")
        return int(word)
    names = [str(member.get("name")) if isinstance(member, dict) else str(member) for member in members]
    if word not in names:
        raise ConfigError(f"{place}: " + unknown("name", word, names))
    return names.index(word)
