"""`clipfuse check`."""

from dataclasses import asdict

from clipfuse.cli.options import Given, Json, Words, duration, megabytes, need, options, print_json, tree_of


@options("out", "overwrite", "device", "dtype", "memory", "batch_size", "seed", "limit", "plugin", "verbose")
def command(given: Given, words: Words = None, as_json: Json = False) -> None:
    """Verify a run or merge and print what it will cost, without reading weights."""
    tree = tree_of(words, given)
    need(tree, "method", "task_arithmetic")
    need(tree, "modelpool", "clip-vit-base-patch32_TA8")
    from clipfuse.run.plan import make_plan

    plan = make_plan(tree)
    if as_json:
        print_json(asdict(plan))
        return
    print(
        f"{plan.method} of {len(plan.experts)} experts ({', '.join(plan.experts)}), "
        f"{'with' if plan.base else 'without'} a base"
    )
    passes = "1 pass" if plan.passes == 1 else f"{plan.passes} passes"
    print(f"{plan.tensors} tensors, {plan.parameters:,} parameters, {passes} over the pool")
    work = f", {plan.work / 1e9:,.0f} GFLOP of decompositions and products" if plan.work else ""
    print(f"reads {megabytes(plan.bytes_read)} in all, writes {megabytes(plan.bytes_written)}{work}")
    print(f"about {megabytes(plan.peak_memory)} of memory beside torch; merging takes {duration(plan.seconds)}")
    print(f"data seen by the method: {', '.join(plan.uses) or 'none'}")
    if plan.tasks:
        print(f"tasks: {', '.join(plan.tasks)}")
    for warning in plan.warnings:
        print(f"warning: {warning}")
