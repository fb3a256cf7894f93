"""`clipfuse evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from clipfuse.cli.live import live
from clipfuse.cli.options import Given, Json, Published, need, options, print_json, say, tree_of
from clipfuse.errors import ConfigError

Models = Annotated[
    list[str], typer.Argument(metavar="MODEL... taskpool=... [base=...]", help="Folders or hub ids, and key=value.")
]


@options("out", "overwrite", "device", "precision", "batch_size", "seed", "limit", "locked", "verbose")
def command(given: Given, words: Models, published: Published = False, as_json: Json = False) -> None:
    """Score models that are there already: MODEL… taskpool=…, and base= or split=val where wanted."""
    out, overwrite = given.pop("out", None), given.pop("overwrite", False)
    models = [word for word in words if "=" not in word]
    tree = tree_of([word for word in words if "=" in word], given)
    if not models:
        raise ConfigError("evaluate: takes at least one model, as in clipfuse evaluate merged/ taskpool=TA8")
    need(tree, "taskpool", "TA8")
    from clipfuse.checkpoints.writer import check_output
    from clipfuse.report import results_tables
    from clipfuse.run.models import score_models, write_results

    if out:
        check_output(Path(out), overwrite)
    results = score_models(models, tree, live)
    if not results.first:  # of several processes one speaks
        return
    tables = results_tables(results.records, published=published)
    if out:
        write_results(Path(out), results, tables, overwrite)
        say(f"Everything is in {out}")
    if as_json:
        print_json([record.model_dump(mode="json") for record in results.records])
    else:
        for table in tables:
            table.print()
