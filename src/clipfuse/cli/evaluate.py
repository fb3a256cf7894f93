"""`clipfuse evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from clipfuse.cli.options import Given, Json, bar, need, options, print_json, say, tree_of
from clipfuse.errors import ConfigError

Models = Annotated[
    list[str], typer.Argument(metavar="MODEL... taskpool=... [base=...]", help="Folders or hub ids, and key=value.")
]


@options("out", "overwrite", "device", "dtype", "batch_size", "seed", "limit", "verbose")
def command(given: Given, words: Models, as_json: Json = False) -> None:
    """Score models that are there already: MODEL… taskpool=…, and base= or split=val where wanted."""
    out, overwrite = given.pop("out", None), given.pop("overwrite", False)
    models = [word for word in words if "=" not in word]
    tree = tree_of([word for word in words if "=" in word], given)
    if not models:
        raise ConfigError("evaluate: takes at least one model, as in clipfuse evaluate merged/ taskpool=TA8")
    need(tree, "taskpool", "TA8")
    from clipfuse.checkpoints.writer import check_output
    from clipfuse.report import results_table
    from clipfuse.report.write import write_results
    from clipfuse.run.models import evaluate_models

    if out:
        check_output(Path(out), overwrite)
    records = evaluate_models(models, tree, bar)
    if out:
        write_results(Path(out), records, overwrite)
        say(f"Everything is in {out}")
    if as_json:
        print_json([record.model_dump(mode="json") for record in records])
    else:
        results_table(records).print()
