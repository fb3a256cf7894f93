"""`clipfuse fetch`."""

from typing import Annotated

import typer

from clipfuse.cli.options import Given, Json, Words, megabytes, options, print_json, say, take, tree_of
from clipfuse.errors import ConfigError

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be downloaded.")]


@options("verbose")
def command(given: Given, words: Words = None, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Download what a pool or suite needs from the hub: modelpool= or taskpool= or both."""
    tree = take(tree_of(words, given), "modelpool", "taskpool", "base")
    if not tree.get("modelpool") and not tree.get("taskpool"):
        raise ConfigError("fetch: takes modelpool= or taskpool=, as in modelpool=clip-vit-base-patch32_TA8")
    from clipfuse.config import parse
    from clipfuse.pool import HuggingFaceClipVisionPool
    from clipfuse.run.fetch import Want, fetch, wanted
    from clipfuse.run.tasks import find_tasks
    from clipfuse.tasks import TaskPoolConfig

    pool = HuggingFaceClipVisionPool.from_tree(tree["modelpool"]) if tree.get("modelpool") else None
    taskpool = parse(TaskPoolConfig, tree["taskpool"], "taskpool") if tree.get("taskpool") else None
    tasks = find_tasks(taskpool) if taskpool else []
    wants = wanted(pool, tasks, tree.get("base") or (taskpool.base if taskpool else None))
    if as_json:
        keys = ("kind", "name", "repo", "commit", "size", "missing")
        print_json([{key: getattr(want, key) for key in keys} for want in wants])
    else:
        for want in wants:
            print(
                f"{want.kind:9} {want.name:16} {want.repo:48} "
                f"{megabytes(want.size):>12}, {megabytes(want.missing)} to get"
            )
        missing = megabytes(sum(want.missing for want in wants))
        print(
            f"{len(wants)} repositories, {missing} to download" if wants else "nothing to download: all paths are local"
        )
    if dry_run:
        return

    def told(want: Want) -> None:
        say(f"{want.name}: done")

    fetch(wants, told)
