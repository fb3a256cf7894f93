"""`clipfuse run`."""

from clipfuse.cli.options import (
    BatchSize,
    Device,
    Dtype,
    Json,
    Limit,
    Out,
    Overwrite,
    Seed,
    Verbose,
    Words,
    bar,
    need,
    print_json,
    say,
    show_log,
    tree_of,
)  # fmt: skip


def command(
    words: Words = None,
    out: Out = None,
    overwrite: Overwrite = False,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    limit: Limit = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Merge, evaluate and report into one folder: method= modelpool= taskpool=."""
    show_log(verbose)
    given = {"out": out, "overwrite": overwrite, "device": device, "dtype": dtype, "batch_size": batch_size}
    tree = tree_of(words, given | {"seed": seed, "limit": limit})
    need(tree, "method", "task_arithmetic")
    need(tree, "modelpool", "clip-vit-base-patch32_TA8")
    need(tree, "taskpool", "TA8")
    from clipfuse.run.pipeline import run

    result = run(tree, bar)
    if as_json:
        print_json([record.model_dump(mode="json") for record in result.records])
        return
    if result.chosen is not None:
        say(f"scaling_factor={result.chosen:g} was chosen on the val split")
    result.table.print()
    say(f"Everything is in {result.folder}")
