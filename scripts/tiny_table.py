"""The tables of docs/tiny.md: base, experts and fused models of the tiny suite, for three seeds of experts.

    python scripts/tiny_table.py            # prints Markdown

Seed 0 is what is shipped; the experts of the other seeds are fine-tuned into `.tiny/seed-<n>` unless they are there and
began from the shipped base. Every figure comes from float16 files, through clipfuse itself. λ is chosen on val, per
seed and method.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from make_tiny import LOGS, digest

from clipfuse.config import parse
from clipfuse.config.presets import load_preset
from clipfuse.evaluate import Candidate
from clipfuse.fusion.chain import configure
from clipfuse.pool import HuggingFaceClipVisionPool
from clipfuse.progress import silent
from clipfuse.run.bench import Bench, open_bench
from clipfuse.run.config import MeasureConfig
from clipfuse.run.measure import BASE, Choice, baseline_candidates, merge_choice, merged_encoder
from clipfuse.run.pipeline import choose
from clipfuse.run.tasks import find_tasks
from clipfuse.tasks import TaskPoolConfig
from clipfuse.tiny.suite import SUITE, WEIGHTS

SEEDS = (0, 1, 2)
SCRATCH = Path(__file__).parents[1] / ".tiny"
LAMBDAS = [0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5]
AVERAGE = "simple average"
METHODS: list[tuple[str, dict[str, Any], list[str]]] = [
    (AVERAGE, {"name": "simple_average"}, []),
    ("task arithmetic", {"name": "task_arithmetic", "scaling_factor": LAMBDAS}, []),
    ("TIES", {"name": "ties_merging", "scaling_factor": LAMBDAS}, []),
    ("MagMax", {"name": "magmax", "scaling_factor": LAMBDAS}, []),
    ("DARE + TIES", {"name": "ties_merging", "scaling_factor": LAMBDAS}, ["dare"]),
    ("TSV-M", {"name": "tsv_merging", "scaling_factor": LAMBDAS}, []),
    ("Iso-C", {"name": "iso_c", "scaling_factor": LAMBDAS}, []),
    ("Iso-CTS", {"name": "iso_cts", "scaling_factor": LAMBDAS}, []),
]
NAMES = [task.name for task in SUITE]
Right = dict[str, list[np.ndarray]]
"""Per model, for every task in order: whether each test image was classified right, (image,) bool."""


def pool_of(seed: int) -> HuggingFaceClipVisionPool:
    """The suite's pool with the experts of one seed."""
    tree = load_preset("modelpool", "tiny_TA8")
    folder = SCRATCH / f"seed-{seed}" if seed else WEIGHTS
    log = LOGS / f"experts-{seed}.txt"
    fits = log.exists() and digest(WEIGHTS / "base") in log.read_text(encoding="utf-8")
    if not fits or not all((folder / name).is_dir() for name in NAMES):
        if not seed:
            raise SystemExit("the shipped experts did not begin from the shipped base: make tiny-experts")
        script = Path(__file__).with_name("make_tiny.py")
        subprocess.run(
            [sys.executable, script, "experts", "--seed", str(seed), "--into", folder], check=True, stdout=sys.stderr
        )
    for member in tree["models"][1:]:
        member["path"] = str(folder / member["name"])
    return HuggingFaceClipVisionPool.from_tree(tree)


def measure(seed: int, bench: Bench) -> tuple[Right, dict[str, Choice]]:
    """Which test images every model of a seed gets right, and the choice of λ of every method that has one."""
    pool = pool_of(seed)
    jobs = [(name, pool, configure(method, edits, seed=seed)) for name, method, edits in METHODS]
    candidates, chosen = baseline_candidates(pool, bench, "all"), {}
    for name, models, chain in jobs:
        choice = choose(models, bench, chain, silent) if chain.values else Choice(chain)
        merged = merge_choice(models, choice, silent)
        candidates.append(Candidate(name, lambda m=merged: merged_encoder(m, bench), 0, 0))
        if choice.value is not None:
            chosen[name] = choice
            edge = " (an end of the grid)" if choice.value in (LAMBDAS[0], LAMBDAS[-1]) else ""
            print(f"seed {seed}: {name} λ={choice.value:g}{edge}", file=sys.stderr)
    right: Right = {}
    for score in bench.score(candidates, "test", silent):
        right.setdefault(score.model, []).append((score.columns["rank"] == 0).numpy())
    return right, chosen


def mean_and_error(values: list[np.ndarray]) -> tuple[float, float]:
    """Mean over tasks of per-image values (image,), and its standard error over images; both in per cent."""
    means = [value.mean() for value in values]
    errors = [value.var(ddof=1) / len(value) for value in values]
    return 100 * float(np.mean(means)), 100 * float(np.sqrt(np.sum(errors))) / len(values)


def over_seeds(first: list[Right], name: str, than: str | None = None) -> list[np.ndarray]:
    """Per task, for every image: right or not, a mean over seeds; or its difference to another model."""
    own = [np.mean([right[name][task] for right in first], axis=0) for task in range(len(NAMES))]
    return own if than is None else [a - b for a, b in zip(own, over_seeds(first, than), strict=True)]


def with_own(right: Right) -> Right:
    """The same with a model `experts`: each task's own expert."""
    return {**right, "experts": [right[name][number] for number, name in enumerate(NAMES)]}


def line(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def main() -> None:
    """Measure every seed and print the tables."""
    taskpool = parse(TaskPoolConfig, load_preset("taskpool", "tiny_TA8"), "taskpool")
    base = load_preset("modelpool", "tiny_TA8")["models"][0]["path"]
    bench = open_bench(find_tasks(taskpool), base, ("test", "val"), parse(MeasureConfig, {}, "table"))
    measured = [measure(seed, bench) for seed in SEEDS]
    rights = [with_own(right) for right, _ in measured]
    models = [BASE, *(name for name, _, _ in METHODS), "experts"]
    low, high = (mean_and_error(over_seeds(rights, name))[0] for name in (BASE, "experts"))

    line(
        "tiny suite",
        *(name.removeprefix("tiny-") for name in NAMES),
        "average",
        "seeds",
        "gap closed",
        "val",
        "λ by val",
    )
    line("---", *["---:"] * (len(NAMES) + 4), "---")
    for model in models:
        tasks = over_seeds(rights, model)
        mean, _ = mean_and_error(tasks)
        each = [mean_and_error([task.astype(float) for task in right[model]])[0] for right in rights]
        chosen = ", ".join(f"{found[model].value:g}" for _, found in measured if model in found)
        cells = [f"{100 * task.mean():.1f}" for task in tasks]
        spread = " / ".join(f"{value:.1f}" for value in each) if model != BASE else ""
        val = [max(found[model].curve.values()) for _, found in measured if model in found]
        seen = f"{100 * np.mean(val):.1f}" if val else ""
        line(model, *cells, f"{mean:.1f}", spread, f"{100 * (mean - low) / (high - low):.0f} %", seen, chosen)

    print("\nDifferences of averages; their standard errors over images (paired), over seeds, and both together:\n")
    line("tiny suite", "points", "error (images)", "error (seeds)", "error", "points ÷ error")
    line("---", *["---:"] * 5)
    for model, _, _ in METHODS:
        for than in (BASE, AVERAGE):
            if model == than:
                continue
            gap, error = mean_and_error(over_seeds(rights, model, than))
            each = [mean_and_error(over_seeds([right], model, than))[0] for right in rights]
            spread = float(np.std(each, ddof=1)) / len(each) ** 0.5
            both = (error**2 + spread**2) ** 0.5
            line(
                f"{model} − {than}", f"{gap:+.1f}", f"{error:.2f}", f"{spread:.2f}", f"{both:.2f}", f"{gap / both:+.1f}"
            )

    print("\nExperts of seed 0 on every task, base first:\n")
    line("tiny suite", *(name.removeprefix("tiny-") for name in NAMES), "average")
    line("---", *["---:"] * (len(NAMES) + 1))
    for model in (BASE, *NAMES):
        found = rights[0][model]
        line(model, *(f"{100 * task.mean():.1f}" for task in found), f"{100 * np.mean([t.mean() for t in found]):.1f}")


if __name__ == "__main__":
    main()
