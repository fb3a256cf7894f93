"""`clipfuse add`."""

import time
from typing import Annotated, Any

import typer

from clipfuse.cli.options import Given, Json, bar, load_given, need, options, print_json, take
from clipfuse.config.overrides import apply_overrides
from clipfuse.errors import ConfigError

Words = Annotated[
    list[str],
    typer.Argument(metavar="FOLDER expert=... [name=...] [base=...]", help="What was merged, and key=value."),
]


@options("out", "overwrite", "device", "memory", "plugin", "verbose")
def command(given: Given, words: Words, as_json: Json = False) -> None:
    """Merge one more expert into the result of a continual method: FOLDER expert=PATH --out DIR, name= where wanted."""
    load_given(given)
    folders = [word for word in words if "=" not in word]
    if len(folders) != 1:
        raise ConfigError("add: takes one merged folder, as in clipfuse add merged/ expert=experts/gtsrb --out more/")
    tree: dict[str, Any] = apply_overrides({}, [word for word in words if "=" in word]) | dict(given)
    take(tree, "expert", "name", "base", "memory", "device", "out", "overwrite")
    need(tree, "expert", "experts/gtsrb")
    tree |= {key: str(tree[key]) for key in ("expert", "name", "base") if tree.get(key) is not None}
    if not tree.get("out"):
        raise ConfigError("--out: is required, as in --out more/")
    from clipfuse.fusion.add import add

    began = time.perf_counter()
    with bar("add", 0, "B") as told:
        merged = add(folders[0], tree.pop("expert"), progress=told, **tree)
    seconds = time.perf_counter() - began
    if as_json:
        print_json({"out": str(tree["out"]), "seconds": round(seconds, 3), "recipe": dict(merged.recipe)})
        return
    order = merged.recipe["arrivals"]["order"]
    print(f"{merged.recipe['method']['name']}: {order[-1]} after {len(order) - 1} → {tree['out']} ({seconds:.1f} s)")
