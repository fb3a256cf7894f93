"""What a sweep over scaling_factor costs beside one merge: it should be one merge, and θ0 + λΔ for each value.

    python benchmarks/sweep.py --case ties_merging --values 21

In one process and in memory, alternating: single merges, and sweeps whose every value is written into one model's room.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from cases import parse
from make_pool import make_pool
from measure import machine, spread

from clipfuse.fusion.chain import configure
from clipfuse.fusion.merge import merge, open_pool
from clipfuse.fusion.sinks import TensorSink
from clipfuse.fusion.sweep import sweep


def main(
    case: Annotated[list[str] | None, typer.Option(help="Chains.")] = None,
    values: Annotated[int, typer.Option(min=2)] = 21,
    pool: Annotated[Path | None, typer.Option(help="YAML of a pool.")] = None,
    runs: Annotated[int, typer.Option(min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Time single merges and sweeps."""
    pool = pool or make_pool(Path(".bench") / "b32")
    tasks = open_pool(pool).tasks
    rows = []
    for name in case or ["task_arithmetic", "ties_merging"]:
        single = configure(**parse(name, tasks))
        chain = replace(single, values=tuple(round(0.05 * k, 2) for k in range(values)))
        taken: dict[str, list[float]] = {"merge": [], "once": [], "sweep": [], "value": []}
        merge(pool, single)
        for _ in range(runs):
            began = time.perf_counter()
            merge(pool, single)
            taken["merge"].append(time.perf_counter() - began)
            began = time.perf_counter()
            swept = sweep(pool, chain)
            merged = time.perf_counter()
            taken["once"].append(merged - began)
            sink = TensorSink.empty(swept.specs)
            for value in swept.values:
                swept.write(value, sink)
            taken["sweep"].append(time.perf_counter() - began)
            taken["value"].append((time.perf_counter() - merged) / values)
        rows.append({"chain": name, "values": values, **taken})
    if as_json:
        print(json.dumps(rows))
        return
    print(f"{machine()}; {len(tasks)} experts, {runs} runs\n")
    print("| rules | one merge, s | sweep, all values, s | up to λ, s | each value, s | sweep / (values × merge) |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        ratios = [s / (m * values) for s, m in zip(row["sweep"], row["merge"], strict=True)]
        cells = [spread(row["merge"]), f"{spread(row['sweep'])} for {values}", spread(row["once"])]
        cells += [spread(row["value"], 3), spread(ratios)]
        print(f"| {row['chain']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
