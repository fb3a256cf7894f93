"""`clipfuse audit`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clipfuse.cli.live import live
from clipfuse.cli.options import Given, Json, options, print_json, say, take, tree_of
from clipfuse.errors import ConfigError

Picture = Annotated[str | None, typer.Option("--picture", metavar="FILE.png", help="Save the pairs as a picture.")]
SHOWN = 10


@options("device", "batch_size", "seed", "limit", "verbose")
def command(
    given: Given,
    what: Annotated[Literal["task"], typer.Argument(help="What to audit.")],
    name: Annotated[str, typer.Argument(help="A task, or the path of its YAML file.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[expert=...] [base=...]")] = None,
    picture: Picture = None,
    as_json: Json = False,
) -> None:
    """Look for test images in a task's train split, exact or nearly; with expert= also whether it knows the test."""
    tree = tree_of(words, given)
    take(tree, "expert", "base", *given)
    if picture and not picture.lower().endswith((".png", ".jpg", ".webp")):
        raise ConfigError(f"--picture: takes a file name that ends with .png, .jpg or .webp (found {picture!r})")
    expert = tree.pop("expert", None)
    if picture and not Path(picture).absolute().parent.is_dir():
        raise ConfigError(f"--picture: {Path(picture).parent}: no such folder")
    from clipfuse.run.audit import audit_expert, audit_task

    scored: dict[str, Any] | None = audit_expert(name, str(expert), tree, live) if expert else None
    found = audit_task(name, live)
    pairs = found.pairs()
    if picture and pairs:
        from clipfuse.run.pictures import picture_of_pairs, save_picture
        from clipfuse.run.tasks import get_task

        save_picture(picture_of_pairs(found, get_task(name)), Path(picture))
        say(f"pairs: {picture}")
    elif picture:
        say("no pairs, so no picture")
    if as_json:
        data = {"task": found.task, "train": len(found.train), "test": len(found.test)}
        print_json(data | {"pairs": pairs, "conflicting": len(found.overlap.conflicting), "expert": scored})
        return
    exact, near = len(found.overlap.exact), len(found.overlap.near)
    print(f"{found.task}: {len(found.test):,} test images, {len(found.train):,} train images")
    print(
        f"{exact} test images are in train exactly, {near} nearly; {len(found.overlap.conflicting)} with other labels"
    )
    for pair in pairs[:SHOWN]:
        print(f"  {pair['test']}  =  {pair['train']}  (distance {pair['distance']:g})")
    if len(pairs) > SHOWN:
        print(f"  and {len(pairs) - SHOWN} more; --json has all, --picture shows them")
    if scored:
        figures = ", ".join(f"{100 * scored[s]['accuracy']:.1f} % on {s}" for s in ("val", "test"))
        print(f"{scored['expert']}: {figures}")
        print(f"warning: {scored['warning']}" if scored["warning"] else "no sign that it was trained on test images")
