"""`clipfuse cache`."""

import shutil
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clipfuse.cache import KINDS, LIMIT, cache_folder, cache_home, cache_limit, sweep
from clipfuse.cli.options import Given, Json, bar, megabytes, options, print_json
from clipfuse.errors import ConfigError, unknown

Action = Annotated[Literal["ls", "rm", "verify"], typer.Argument(help="List, remove, or check the images.")]
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="To rm: names of entries, kinds of them, or all."),
]


@options("verbose")
def command(given: Given, action: Action, names: Names = None, as_json: Json = False) -> None:
    """List, remove or verify what clipfuse keeps and can make again: decoded images, heads, scores and the like."""
    if names and action != "rm":
        raise ConfigError(f"cache {action}: takes no names (found {names[0]!r})")
    {"ls": ls, "rm": rm, "verify": verify}[action](names or [], as_json)


def ls(names: list[str], as_json: bool) -> None:
    rows = listing()
    if as_json:
        print_json(rows)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        used = datetime.fromtimestamp(row["used"]).strftime("%Y-%m-%d %H:%M") if row["used"] else ""
        print(f"{row['kind']:9} {row['name']:{width}} {megabytes(row['bytes']):>14}  {used}".rstrip())
    held = megabytes(sum(row["bytes"] for row in rows))
    print(f"{held} in {cache_home()}; images take at most {megabytes(cache_limit())} ({LIMIT})")


def listing() -> list[dict[str, Any]]:
    """Entries of images one by one, other kinds as a whole."""
    from clipfuse.data.image_cache import entries

    rows = [{"kind": "images", "name": folder.name, "bytes": size, "used": used} for folder, size, used in entries()]
    for kind in KINDS:
        folder = cache_home() / kind
        if kind != "images" and (size := size_of(folder)):
            rows.append({"kind": kind, "name": kind, "bytes": size, "used": None})
    return rows


def rm(names: list[str], as_json: bool) -> None:
    """Remove entries or whole kinds; only what clipfuse put there."""
    if not names:
        raise ConfigError(f"cache rm: takes names of entries, kinds ({', '.join(KINDS)}), or all")
    known = {row["name"]: cache_home() / row["kind"] / row["name"] for row in listing() if row["kind"] == "images"}
    known |= {kind: cache_home() / kind for kind in KINDS}
    wanted = list(KINDS) if "all" in names else names
    for name in wanted:
        if name not in known:
            raise ConfigError("cache rm: " + unknown("entry", name, known))
    freed = sum(size_of(known[name]) for name in dict.fromkeys(wanted))
    for name in wanted:
        shutil.rmtree(known[name], ignore_errors=True)
    if as_json:
        print_json({"removed": wanted, "bytes": freed})
    else:
        print(f"{megabytes(freed)} freed")


def verify(names: list[str], as_json: bool) -> None:
    """Read every file of images and compare its checksum; damaged ones are removed, and made again when needed.

    The status is then 1. What killed processes left half-written a week ago or longer goes too.
    """
    from clipfuse.data.image_cache import entries
    from clipfuse.data.image_cache import verify as verify_entry

    found = list(entries())
    damaged: list[Path] = []
    with bar("verify", sum(size for _, size, _ in found), "B") as told:
        for folder, size, _ in found:
            damaged += verify_entry(folder)
            told(size)
    for path in damaged:
        path.unlink(missing_ok=True)
    swept = sweep()
    if as_json:
        print_json({"entries": len(found), "damaged": [str(path) for path in damaged]})
    else:
        tell(found, damaged, swept)
    if damaged:
        raise typer.Exit(1)


def tell(found: list[Any], damaged: list[Path], swept: int) -> None:
    for path in damaged:
        print(f"damaged, removed: {path.relative_to(cache_folder('images'))}")
    print(f"{len(found)} entries of images checked, {len(damaged)} files damaged")
    if swept:
        print(f"{megabytes(swept)} of half-written files removed")


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
