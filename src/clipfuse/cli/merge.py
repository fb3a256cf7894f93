"""`clipfuse merge`."""

import time
from typing import Any

from clipfuse.cli.live import live
from clipfuse.cli.options import Given, Json, Words, bar, factors_kept, megabytes, need, options, print_json, tree_of
from clipfuse.errors import ConfigError


@options("out", "overwrite", "dtype", "seed", "device", "memory", "plugin", "keep_factors", "locked", "verbose")
def command(given: Given, words: Words = None, as_json: Json = False) -> None:
    """Merge a pool into a Hugging Face folder: method= modelpool= --out DIR, then key=value."""
    from clipfuse.checkpoints.ledger import keep_ledger

    with factors_kept(given), keep_ledger(given.get("locked")):
        merge_tree(tree_of(words, given), as_json)


def merge_tree(tree: dict[str, Any], as_json: bool) -> None:
    """Merge what a tree says, and print what came out."""
    need(tree, "method", "task_arithmetic")
    need(tree, "modelpool", "clip-vit-base-patch32_TA8")
    from clipfuse.config import parse
    from clipfuse.run.config import RunConfig

    config = parse(RunConfig, {"taskpool": {}, **tree}, "merge")
    if not config.out:
        raise ConfigError("--out: is required, as in --out merged/")
    from clipfuse.fusion.chain import configure
    from clipfuse.fusion.loading import load_plugins
    from clipfuse.fusion.merge import merge, merge_device
    from clipfuse.pool import HuggingFaceClipVisionPool
    from clipfuse.progress import silent

    load_plugins(config.plugins)
    chain = configure(config.method, config.edits, config.finishes, config.seed, config.after)
    pool = HuggingFaceClipVisionPool.from_tree(config.modelpool)
    lender = None
    if chain.looks:
        need(tree, "taskpool", "TA8")
        from clipfuse.run.lend import lender_for
        from clipfuse.tasks import TaskPoolConfig

        lender = lender_for(pool, parse(TaskPoolConfig, config.taskpool, "taskpool"), config, live)
    began = time.perf_counter()
    shown = silent if chain.looks else bar  # steps are shown then
    with shown(f"merge {chain.method.rule.name}", pool.weights.nbytes * chain.passes, "B") as told:
        merged = merge(
            pool,
            chain,
            dtype=config.dtype,
            out=config.out,
            overwrite=config.overwrite,
            memory=config.memory,
            device=merge_device(config.device),
            data=lender,
            progress=told,
        )
    seconds = time.perf_counter() - began
    written = sum(tensor.nbytes for tensor in merged.tensors.values())
    if as_json:
        print_json({"out": config.out, "seconds": round(seconds, 3), "bytes": written, "recipe": dict(merged.recipe)})
        return
    print(f"{chain.method.rule.name} of {len(pool)} experts → {config.out} ({megabytes(written)}, {seconds:.1f} s)")
