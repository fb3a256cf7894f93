"""`clipfuse evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from clipfuse.cli.options import (
    BatchSize,
    Device,
    Json,
    Limit,
    Out,
    Overwrite,
    Seed,
    Verbose,
    bar,
    need,
    print_json,
    say,
    show_log,
    take,
    tree_of,
)  # fmt: skip
from clipfuse.errors import ConfigError

Models = Annotated[
    list[str], typer.Argument(metavar="MODEL... taskpool=... [base=...]", help="Folders or hub ids, and key=value.")
]


def command(
    words: Models,
    out: Out = None,
    overwrite: Overwrite = False,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16, bfloat16: of the forward passes.")] = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    limit: Limit = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Score models that are there already: MODEL… taskpool=…, and base= or split=val where wanted."""
    show_log(verbose)
    models = [word for word in words if "=" not in word]
    given = {"device": device, "dtype": dtype, "batch_size": batch_size, "seed": seed, "limit": limit}
    tree = tree_of([word for word in words if "=" in word], given)
    take(tree, "taskpool", "base", "split", "device", "dtype", "batch_size", "seed", "limit")
    if not models:
        raise ConfigError("evaluate: takes at least one model, as in clipfuse evaluate merged/ taskpool=TA8")
    taskpool = need(tree, "taskpool", "TA8")
    from clipfuse.checkpoints.writer import check_output
    from clipfuse.config import parse
    from clipfuse.report import results_table
    from clipfuse.report.write import write_results
    from clipfuse.run.models import evaluate_models
    from clipfuse.tasks import TaskPoolConfig

    if out:
        check_output(Path(out), overwrite)
    config = parse(TaskPoolConfig, taskpool, "taskpool")
    records = evaluate_models(models, config, stage=bar, **{k: v for k, v in tree.items() if k != "taskpool"})
    if out:
        write_results(Path(out), records, overwrite)
        say(f"Everything is in {out}")
    if as_json:
        print_json([record.model_dump(mode="json") for record in records])
    else:
        results_table(records).print()
