"""`clipfuse run`."""

from clipfuse.cli.live import live
from clipfuse.cli.options import (
    Given,
    Json,
    Published,
    Words,
    factors_kept,
    need,
    options,
    print_json,
    say,
    tree_of,
)


@options(
    *("out", "overwrite", "device", "dtype", "precision", "memory", "batch_size", "seed", "limit"),
    *("plugin", "keep_factors", "locked", "verbose"),
)
def command(given: Given, words: Words = None, published: Published = False, as_json: Json = False) -> None:
    """Merge, evaluate and report into one folder: method= modelpool= taskpool=, then key=value."""
    with factors_kept(given):
        tree = tree_of(words, given) | ({"published": True} if published else {})
        need(tree, "method", "task_arithmetic")
        need(tree, "modelpool", "clip-vit-base-patch32_TA8")
        need(tree, "taskpool", "TA8")
        from clipfuse.run.pipeline import run

        result = run(tree, live)
    if as_json:
        print_json([record.model_dump(mode="json") for record in result.records])
        return
    for table in result.tables:
        table.print()
    say(f"Everything is in {result.folder}")
