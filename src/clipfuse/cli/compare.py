"""`clipfuse compare`."""

from dataclasses import asdict
from math import isfinite
from typing import Annotated

import typer

from clipfuse.cli.options import Given, Json, options, print_json

ModelA = Annotated[str | None, typer.Option("--model-a", help="Model of A; the merged or only one by default.")]
ModelB = Annotated[str | None, typer.Option("--model-b", help="Model of B.")]


@options("verbose")
def command(
    given: Given,
    a: Annotated[str, typer.Argument(metavar="RUN_A", help="Folder of a run or evaluation.")],
    b: Annotated[str, typer.Argument(metavar="RUN_B", help="Another, or the same.")],
    model_a: ModelA = None,
    model_b: ModelB = None,
    as_json: Json = False,
) -> None:
    """Compare two models on the same images: exact McNemar tests, bootstrap intervals, what could be detected."""
    from clipfuse.run.compare import compare_runs, comparison_table

    found = compare_runs(a, b, model_a, model_b)
    if as_json:
        tree = asdict(found)
        for task in tree["tasks"].values():  # JSON knows no infinity: no difference could be found
            task["detectable"] = task["detectable"] if isfinite(task["detectable"]) else None
        print_json(tree)
    else:
        comparison_table(found).print()
