"""`clipfuse merge`."""

import time
from typing import Any

from clipfuse.cli.options import (
    Given,
    Json,
    Words,
    bar,
    factors_kept,
    megabytes,
    need,
    options,
    print_json,
    take,
    tree_of,
)
from clipfuse.errors import ConfigError


@options("out", "overwrite", "dtype", "seed", "device", "memory", "plugin", "keep_factors", "verbose")
def command(given: Given, words: Words = None, as_json: Json = False) -> None:
    """Merge a pool into a Hugging Face folder: method= modelpool= --out DIR, then key=value."""
    with factors_kept(given):
        merge_tree(tree_of(words, given), as_json)


def merge_tree(tree: dict[str, Any], as_json: bool) -> None:
    """Merge what a tree says, and print what came out."""
    tree.pop("taskpool", None)
    take(
        tree,
        "method",
        "modelpool",
        "edits",
        "finishes",
        "plugins",
        "seed",
        "dtype",
        "device",
        "memory",
        "out",
        "overwrite",
    )
    method, modelpool = need(tree, "method", "task_arithmetic"), need(tree, "modelpool", "clip-vit-base-patch32_TA8")
    if not tree.get("out"):
        raise ConfigError("--out: is required, as in --out merged/")
    from clipfuse.fusion.chain import configure
    from clipfuse.fusion.loading import load_plugins
    from clipfuse.fusion.merge import merge
    from clipfuse.pool import HuggingFaceClipVisionPool

    load_plugins(tree.get("plugins", []))
    chain = configure(method, tree.get("edits", ()), tree.get("finishes", ()), tree.get("seed", 0))
    pool = HuggingFaceClipVisionPool.from_tree(modelpool)
    began = time.perf_counter()
    with bar(f"merge {chain.method.rule.name}", pool.weights.nbytes * chain.passes, "B") as told:
        keys = ("out", "overwrite", "dtype", "device", "memory")
        merged = merge(pool, chain, progress=told, **{key: tree[key] for key in keys if key in tree})
    seconds = time.perf_counter() - began
    written = sum(tensor.nbytes for tensor in merged.tensors.values())
    if as_json:
        print_json(
            {"out": str(tree["out"]), "seconds": round(seconds, 3), "bytes": written, "recipe": dict(merged.recipe)}
        )
        return
    print(f"{chain.method.rule.name} of {len(pool)} experts → {tree['out']} ({megabytes(written)}, {seconds:.1f} s)")
