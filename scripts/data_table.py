"""The table of docs/data.md: methods that look at data on the tiny suite, what they saw, and how certain they are.

    python scripts/data_table.py            # prints Markdown; records stay in .tiny/data-table
    python scripts/data_table.py --only adamerging

A row is a merge of the suite's shipped experts with the method's own settings, scored on the test splits; λ of the
data-free rows is chosen on val. Temperatures are fitted on val. What is there already is not measured again.
"""

import argparse
import sys
import time
from math import exp, log
from typing import Any

from tiny_table import LAMBDAS, SCRATCH, line

from clipfuse.config import parse
from clipfuse.config.presets import load_preset
from clipfuse.evaluate import Record
from clipfuse.evaluate.record import read_records, write_records
from clipfuse.fusion.chain import configure
from clipfuse.pool import HuggingFaceClipVisionPool
from clipfuse.progress import silent
from clipfuse.report.results import average, half_width, percent
from clipfuse.run.bench import open_bench
from clipfuse.run.config import MeasureConfig
from clipfuse.run.lend import TaskLender
from clipfuse.run.measure import Choice, measure
from clipfuse.run.pipeline import choose
from clipfuse.run.tasks import find_tasks
from clipfuse.tasks import TaskPoolConfig

Tree = dict[str, Any]
TEST: Tree = {"images": "test", "allow_test_adaptation": True}
LAYER: Tree = {"name": "adamerging"}
TA: Tree = {"name": "task_arithmetic"}
LEARNED = SCRATCH / "data-table" / "AdaMerging" / "merged"
"""Where the row AdaMerging leaves its coefficients, for others to apply again."""
ROWS: dict[str, tuple[Tree, list[str], Tree | None]] = {
    "simple average": ({"name": "simple_average"}, [], None),
    "task arithmetic, λ = 0.3": (TA, [], None),
    "TIES, λ by val": ({"name": "ties_merging", "scaling_factor": LAMBDAS}, [], None),
    "TSV-M, λ by val": ({"name": "tsv_merging", "scaling_factor": LAMBDAS}, [], None),
    "Fisher, sampled": ({"name": "fisher_merging"}, [], None),
    "Fisher, batch_sum (published)": ({"name": "fisher_merging", "estimator": "batch_sum"}, [], None),
    "RegMean": ({"name": "regmean"}, [], None),
    "RegMean++": ({"name": "regmean_plusplus"}, [], None),
    "RegMean++, post_layernorm=base (published)": ({"name": "regmean_plusplus", "post_layernorm": "base"}, [], None),
    "AdaSVD": ({"name": "ada_svd"}, [], None),
    "AdaSVD, λ by val": ({"name": "ada_svd", "scaling_factor": [1, 2, 3, 4, 6, 8]}, [], None),
    "trust region": ({"name": "trust_region"}, [], None),
    "FW, hard": ({"name": "fw_merging"}, [], None),
    "AdaMerging, task-wise": (LAYER | {"grain": "task"}, [], None),
    "AdaMerging, task-wise, on test": (LAYER | {"grain": "task"} | TEST, [], None),
    "AdaMerging": (LAYER, [], None),
    "AdaMerging, early stop by accuracy": (LAYER | {"early_stop": "accuracy"}, [], None),
    "AdaMerging, early stop by entropy": (LAYER | {"early_stop": "entropy"}, [], None),
    "AdaMerging, on test": (LAYER | TEST, [], None),
    "AdaMerging++ (edit ties)": (LAYER, ["ties"], None),
    "AdaMerging++ (edit ties), on test": (LAYER | TEST, ["ties"], None),
    "Concrete TA, 1,000 steps": ({"name": "concrete", "steps": 1000}, [], None),
    "Concrete AdaMerging": ({"name": "concrete", "steps": 1000, "then": "layer"}, [], None),
    "AdaRank, 500 steps": ({"name": "adarank", "steps": 500}, [], None),
    "task arithmetic + surgery": (TA, [], {"name": "surgery"}),
    "AdaMerging + surgery": (LAYER | {"weights": str(LEARNED)}, [], {"name": "surgery"}),
    "AdaMerging + ProbSurgery": (LAYER | {"weights": str(LEARNED)}, [], {"name": "prob_surgery"}),
}
"""Title → method, edits, after."""


def seen(record: Record) -> str:
    """Split, images and passes of all rules that looked at any."""
    told = []
    for rule, split in dict.fromkeys((row["rule"], row["split"]) for row in record.seen):
        rows = [row for row in record.seen if (row["rule"], row["split"]) == (rule, split)]
        images, looks = sum(row["images"] for row in rows), sum(row["images"] * row["passes"] for row in rows)
        labels = " with labels" if any(row["labels"] for row in rows) else ""
        told.append(f"{split}{labels}, {images:,} × {looks / images:.3g}")
    return "; ".join(told) or "none"


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", default="", help="rows whose title holds this")
    parser.add_argument("--without", help="no rows whose title holds this")
    asked = parser.parse_args()
    taskpool = parse(TaskPoolConfig, load_preset("taskpool", "tiny_TA8"), "taskpool")
    pool = HuggingFaceClipVisionPool.from_tree(load_preset("modelpool", "tiny_TA8"))
    base = load_preset("modelpool", "tiny_TA8")["models"][0]["path"]
    config = parse(MeasureConfig, {"calibrate": True}, "table")
    bench = open_bench(find_tasks(taskpool), base, ("test", "val"), config)
    work = {"data": TaskLender(bench.tasks, base, config)}
    folder = SCRATCH / "data-table"
    folder.mkdir(parents=True, exist_ok=True)
    records: dict[str, list[Record]] = {}
    for number, (title, (method, edits, after)) in enumerate(ROWS.items()):
        path = folder / f"{title.replace('/', '-')}.jsonl"
        if asked.only not in title or (asked.without and asked.without in title):
            continue
        if not path.is_file():
            began = time.monotonic()
            chain = configure(method, edits, after=after)
            choice = choose(pool, bench, chain, silent, work) if chain.values else Choice(chain)
            out = LEARNED.parent if title == LEARNED.parent.name else None
            found = measure(pool, bench, [choice], "own" if not number else "none", silent, out, work)
            write_records(path, found)
            print(f"{title}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        records[title] = read_records(path)
    tell(records)


def tell(records: dict[str, list[Record]]) -> None:
    """Print the rows."""
    found = {}
    for title, mine in records.items():
        found |= {
            BASES[role]: [r for r in mine if r.role == role] for role in BASES if any(r.role == role for r in mine)
        }
        found[title] = [record for record in mine if record.role == "merged"]
    line("tiny suite", "average", "±", "NLL", "entropy", "temperature", "data seen")
    line("---", *["---:"] * 5, "---")
    for title, mine in found.items():
        first = mine[0]
        marks = (" (transductive)" if first.transductive else "") + (" (task id known)" if first.needs_task_id else "")
        count = len(mine)
        nll, entropy = sum(r.loss / r.n for r in mine) / count, sum(r.entropy or 0.0 for r in mine) / count
        temperature = exp(sum(log(r.temperature or 1.0) for r in mine) / count)
        figures = [
            percent(average(mine)),
            percent(half_width(mine)),
            f"{nll:.3f}",
            f"{entropy:.3f}",
            f"{temperature:.2f}",
        ]
        line(title + marks, *figures, seen(first) if first.role == "merged" else "")


BASES = {"base": "pre-trained", "expert": "experts, each on its own task"}

if __name__ == "__main__":
    main()
