"""Who may import whom: a room imports only from itself and from rooms above it in docs/architecture.md."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/clipfuse"
ROOMS = re.findall(r"^    (\w+)(?:\.py|/) ", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.M)

ENTRIES = {"__init__", "__main__"}
"""Ways into the package; they belong to no room."""

SHARED = {
    *(
        "registry",
        "paper",
        "random_bits",
        "blocks",
        "election",
        "adam",
        "streams",
        "feature_modules",
        "lent",
        "forward",
        "walk",
        "mixture",
    ),
    *("entropy", "coefficients", "coefficients_picture", "by_image", "relaxed"),
}
"""What a rule may import of its own room."""

ENGINE = {
    *(
        "add",
        "after",
        "arrivals",
        "chain",
        "engine",
        "kept",
        "loading",
        "merge",
        "merged",
        "prepared",
        "sinks",
        "step",
        "sweep",
    ),
    *("task_tensors", "__init__"),
}
"""What runs the rules."""


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms that a file imports from, whether at its top, in a function or for types only."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("clipfuse.")}


def test_architecture_names_every_room():
    found = {room(path) for path in PACKAGE.rglob("*.py")} - ENTRIES
    assert sorted(ROOMS) == sorted(found)


def test_rooms_import_upwards_only():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in PACKAGE.rglob("*.py")
        for other in imports(path)
        if room(path) not in ENTRIES and ROOMS.index(other) > ROOMS.index(room(path))
    ]
    assert not wrong, "\n".join(wrong)


def test_rules_do_not_import_each_other():
    for path in (PACKAGE / "fusion").glob("*.py"):
        if path.stem not in SHARED | ENGINE:
            names = re.findall(r"from clipfuse\.fusion\.(\w+)", path.read_text(encoding="utf-8"))
            assert set(names) <= SHARED, path


def test_files_are_short():
    long = {
        str(path.relative_to(ROOT)): n
        for path in (ROOT / "src").rglob("*.py")
        if (n := len(path.read_text(encoding="utf-8").splitlines())) > 250
    }
    assert not long
