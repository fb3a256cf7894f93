"""`clipfuse finetune`."""

from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from clipfuse.cli.live import live
from clipfuse.cli.options import Given, Json, is_first, options, print_json, say, tree_of
from clipfuse.errors import ConfigError

UNFINISHED = 75
"""Exit status where time was up: EX_TEMPFAIL, the same command goes on."""

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILE.yaml] task=... base=... [recipe=...] [KEY=VALUE]...",
        help="A task or taskpool=, the CLIP to begin with, a recipe's name, and settings of it.",
    ),
]
Minutes = Annotated[float | None, typer.Option("--max-minutes", min=0.001, help="Stop then; the same command goes on.")]


@options("out", "overwrite", "device", "precision", "seed", "dtype", "locked", "verbose")
def command(given: Given, words: Words = None, max_minutes: Minutes = None, as_json: Json = False) -> None:
    """Fine-tune a CLIP's vision encoder on tasks: task=gtsrb base=openai/clip-vit-base-patch32, then key=value."""
    tree = tree_of(words, {**given, **({"max_minutes": max_minutes} if max_minutes else {})}, group="recipe")
    if tree.get("task") is None and tree.get("taskpool") is None:
        raise ConfigError("task: is required, as in task=gtsrb, or taskpool=TA8")
    from clipfuse.run.finetune import finetune
    from clipfuse.run.siblings import cosines, siblings

    tell = is_first() and not as_json
    experts = finetune(tree, live, lambda expert: print(line_of(expert)) if tell else None)
    if not is_first():
        return
    done = [expert for expert in experts if expert.facts is not None]
    if as_json:
        print_json([{"name": e.name, "folder": str(e.folder), "steps": e.steps, "facts": e.facts} for e in experts])
    else:
        for expert in experts[len(done) :]:
            print(line_of(expert))
        if done and (table := cosines(siblings(done))):
            table.print()
    if len(done) < len(experts):
        say("time is up: the same command goes on from there")
        raise typer.Exit(UNFINISHED)


def line_of(expert: Any) -> str:
    """How one training went."""
    facts = expert.facts
    if facts is None:
        return f"{expert.name}: {expert.steps} of {expert.of} steps"
    losses = [loss for _, loss in facts["curve"]["loss"]]
    share = max(1, len(losses) // 20)
    summed = " (sum over tasks)" if len(facts["tasks"]) > 1 else ""
    told = [f"{expert.of} steps, loss {fmean(losses[:share]):.3f} → {fmean(losses[-share:]):.3f}{summed}"]
    for task, val in facts["val"].items():
        of = f"{task} " if len(facts["tasks"]) > 1 else ""
        told.append(f"val {of}{100 * val['before']:.1f} → {100 * val['after']:.1f} % of {val['n']:,}")
    told.append(f"‖τ‖ {facts['task_vector']['norm']:.3g}")
    there = " (was there already)" if expert.kept else ""
    return f"{expert.name}: {', '.join(told)} → {Path(expert.folder)}{there}"
