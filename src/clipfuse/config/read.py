"""Reading a user's YAML: UTF-8, plain data only, no key twice, no way out of the file."""

import re
from pathlib import Path
from typing import Any

import yaml

from clipfuse.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_NODES = 200_000
MAX_DEPTH = 50
MAX_NUMBER = 400
"""Characters of a number: some of YAML's forms take quadratic time, or give one that no float holds."""
RESOLVER = re.compile(r"\$\{[^{}]*:")


class PlainLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses repeated keys and reads `1e-5` as a number."""

    def fetch_flow_collection_start(self, TokenClass: type) -> None:
        if self.flow_level >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, f"nested more than {MAX_DEPTH} deep", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_NUMBER:
            raise yaml.constructor.ConstructorError(None, None, "a number of many digits", node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: the file is missing, not UTF-8, not plain YAML (python tags), has a key twice, is not a
            mapping, or interpolates from outside itself (`${oc.env:…}`), because recipes are published.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: a configuration takes at most {MAX_BYTES:,} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping that YAML text holds; `where` names it in errors. Raises ConfigError like `read_yaml`."""
    try:
        tree = yaml.load(text, Loader=PlainLoader)  # noqa: S506  a SafeLoader: builds plain data only
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(f"{where}: {spot(error.problem_mark)}{plain_problem(error.problem)}") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{where}: {spot(error.problem_mark)}not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{where}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(f"{where}: holds {found}; it takes keys and values")
    inspect(tree, where)
    return tree


def spot(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}: " if mark else ""


def plain_problem(problem: str | None) -> str:
    tag = re.search(r"tag '([^']*)'", problem or "")
    if tag:
        return f"tag {tag[1].replace('tag:yaml.org,2002:', '!!')!r} is refused; only plain data is read"
    return str(problem)


def inspect(tree: Any, where: str) -> None:
    """Refuse trees that alias themselves into something huge, and interpolations that leave the file."""
    nodes, stack = 0, [tree]
    while stack:
        nodes += 1
        if nodes > MAX_NODES:
            raise ConfigError(f"{where}: more than {MAX_NODES:,} values (aliases inside aliases?)")
        node = stack.pop()
        if isinstance(node, dict):
            stack += [*node.keys(), *node.values()]
        elif isinstance(node, list):
            stack += node
        elif isinstance(node, str) and RESOLVER.search(node):
            raise ConfigError(f"{where}: {node!r}: a file may interpolate only inside itself, as in ${{key.other}}")
