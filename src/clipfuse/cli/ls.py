"""`clipfuse ls`."""

from typing import Annotated, Any, Literal

import typer

from clipfuse.cli.options import Json, print_json
from clipfuse.config.presets import presets

What = Literal["methods", "edits", "finishes", "modelpools", "tasks", "taskpools", "runs"]


def command(what: Annotated[What, typer.Argument(help="What to list.")], as_json: Json = False) -> None:
    """List methods, edits, finishes, modelpools, tasks, taskpools or runs."""
    rows = listing(what)
    if as_json:
        print_json(rows)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        print(f"{row['name']:{width}}  {row['about']}".rstrip())


def listing(what: What) -> list[dict[str, Any]]:
    """Names with a line about each."""
    if what in ("methods", "edits", "finishes"):
        import clipfuse.fusion  # noqa: F401  registers the rules
        from clipfuse.fusion.registry import TABLES, Kind

        kinds: dict[str, Kind] = {"methods": "method", "edits": "edit", "finishes": "finish"}
        rules = TABLES[kinds[what]]
        return [{"name": name, "about": rule.summary, "formula": rule.formula} for name, rule in rules.items()]
    if what == "tasks":
        from clipfuse.run.bench import all_tasks

        tasks = all_tasks()
        return [
            {
                "name": t.name,
                "about": f"{len(t.classes)} classes, {t.test_images} test images",
                "suites": list(t.suites),
            }
            for t in tasks
        ]
    found = presets(what.removesuffix("s"))
    return [{"name": name, "about": str(path)} for name, path in found.items()]
