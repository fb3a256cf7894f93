"""`clipfuse publish`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from clipfuse.cli.options import Given, Json, megabytes, options, print_json
from clipfuse.errors import ConfigError

Folder = Annotated[str, typer.Argument(metavar="DIR", help="What clipfuse merged, or a run.")]
Repo = Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the hub; made if it is not there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be uploaded; --out keeps it.")]
Private = Annotated[bool, typer.Option("--private", help="Make it a private repository.")]
Message = Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")]
Clip = Annotated[bool, typer.Option("--clip", help="The full CLIP: with the base's text tower, tokenizer, processor.")]
Records = Annotated[str | None, typer.Option("--records", help="What evaluate --out wrote of it; a run has its own.")]


@options("out", "overwrite", "verbose")
def command(
    given: Given,
    folder: Folder,
    repo: Repo,
    dry_run: DryRun = False,
    private: Private = False,
    message: Message = None,
    clip: Clip = False,
    records: Records = None,
    as_json: Json = False,
) -> None:
    """Put a merged model on the hub: weights, recipe, records, and a card that lets anyone check it."""
    from clipfuse.run.publish import publish

    overwrite = given.get("overwrite", False)
    if dry_run:
        show(folder, repo, given.get("out"), overwrite, clip, records, as_json)
        return
    if given.get("out"):
        raise ConfigError("--out: keeps what --dry-run prepares, and goes with it")
    done = publish(folder, repo, private=private, message=message, clip=clip, records=records, overwrite=overwrite)
    if as_json:
        print_json({"repo": done.repo, "url": done.url, "commit": done.commit, "files": dict(done.files)})
    else:
        print(f"{len(done.files)} files, {megabytes(sum(done.files.values()))} → {done.url}\ncommit {done.commit}")


def show(
    folder: str, repo: str, out: str | None, overwrite: bool, clip: bool, records: str | None, as_json: bool
) -> None:
    """What would be uploaded: its files with sizes, and the card's front matter."""
    from clipfuse.run.publish import prepare
    from clipfuse.run.upload import CARD, listing

    with tempfile.TemporaryDirectory(prefix="clipfuse-") as room:
        where = Path(out or Path(room, "model"))
        prepared = prepare(folder, repo, where, clip=clip, records=records, overwrite=overwrite)
        files = listing(prepared)
        head = (prepared / CARD).read_text(encoding="utf-8").split("\n---\n", 1)[0]
    if as_json:
        print_json({"repo": repo, "files": files, "front_matter": head.removeprefix("---\n")})
        return
    print(f"{repo}: {len(files)} files, {megabytes(sum(files.values()))}; nothing was uploaded")
    for name, size in files.items():
        print(f"  {name:26} {size:>13,} bytes")
    print(f"\n{CARD} begins:\n{head}\n---")
    if out:
        print(f"\nAll of it is in {out}")
