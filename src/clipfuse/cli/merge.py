"""`clipfuse merge`."""

import time

from clipfuse.cli.options import (
    Dtype,
    Json,
    Out,
    Overwrite,
    Seed,
    Verbose,
    Words,
    bar,
    megabytes,
    need,
    print_json,
    show_log,
    take,
    tree_of,
)  # fmt: skip
from clipfuse.errors import ConfigError


def command(
    words: Words = None,
    out: Out = None,
    overwrite: Overwrite = False,
    dtype: Dtype = None,
    seed: Seed = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Merge a pool into a Hugging Face folder: method= modelpool= --out DIR."""
    show_log(verbose)
    tree = tree_of(words, {"out": out, "overwrite": overwrite, "dtype": dtype, "seed": seed})
    tree.pop("taskpool", None)
    take(tree, "method", "modelpool", "edits", "finishes", "seed", "dtype", "out", "overwrite")
    method, modelpool = need(tree, "method", "task_arithmetic"), need(tree, "modelpool", "clip-vit-base-patch32_TA8")
    if not tree.get("out"):
        raise ConfigError("--out: is required, as in --out merged/")
    from clipfuse.fusion.merge import merge
    from clipfuse.fusion.registry import configure
    from clipfuse.pool import HuggingFaceClipVisionPool

    chain = configure(method, tree.get("edits", ()), tree.get("finishes", ()), tree.get("seed", 0))
    pool = HuggingFaceClipVisionPool.from_tree(modelpool)
    began = time.perf_counter()
    with bar(f"merge {chain.method.rule.name}", pool.weights.nbytes * chain.passes, "B") as told:
        keys = ("out", "overwrite", "dtype")
        merged = merge(pool, chain, progress=told, **{key: tree[key] for key in keys if key in tree})
    seconds = time.perf_counter() - began
    written = sum(tensor.nbytes for tensor in merged.tensors.values())
    if as_json:
        print_json(
            {"out": str(tree["out"]), "seconds": round(seconds, 3), "bytes": written, "recipe": dict(merged.recipe)}
        )
        return
    print(f"{chain.method.rule.name} of {len(pool)} experts → {tree['out']} ({megabytes(written)}, {seconds:.1f} s)")
