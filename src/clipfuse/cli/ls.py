"""`clipfuse ls`."""

from typing import Annotated, Any, Literal

import typer

from clipfuse.cli.options import Given, Json, load_given, options, print_json
from clipfuse.config.presets import presets

What = Literal["methods", "edits", "finishes", "afters", "modelpools", "tasks", "taskpools", "runs"]


@options("plugin")
def command(given: Given, what: Annotated[What, typer.Argument(help="What to list.")], as_json: Json = False) -> None:
    """List methods, edits, finishes, afters (what is learned on a merge), modelpools, tasks, taskpools or runs."""
    load_given(given)
    rows = listing(what)
    if as_json:
        print_json(rows)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        print(f"{row['name']:{width}}  {row['about']}".rstrip())


def listing(what: What) -> list[dict[str, Any]]:
    """Names with a line about each."""
    if what in ("methods", "edits", "finishes", "afters"):
        from clipfuse.fusion.loading import load_installed
        from clipfuse.fusion.registry import TABLES, Kind

        load_installed()
        kinds: dict[str, Kind] = {"methods": "method", "edits": "edit", "finishes": "finish", "afters": "after"}
        rules = TABLES[kinds[what]]
        return [{"name": name, "about": rule.summary, "formula": rule.formula} for name, rule in rules.items()]
    if what == "tasks":
        from clipfuse.run.tasks import all_tasks

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
