"""How long `clipfuse merge` takes, beside the floor of reading every input and writing the output once.

    python benchmarks/merge.py                        # task_arithmetic and ties_merging, ViT-B/32, eight experts
    python benchmarks/merge.py --case magmax --case "dare(drop=0.9)+task_arithmetic" --runs 9
    python benchmarks/merge.py --case all             # every method, edit and finish that needs no data
    python benchmarks/merge.py --peers                # FusionBench and mergekit on the same files, in the same run
    python benchmarks/merge.py --case all --arch l14 --experts 20    # twenty names for eight experts' files

Whole processes, files in the page cache, one warm-up (in which memory is watched, so that watching slows no timed
run), then rounds of the floor and of every case, so that what else the machine does falls on all of them. Ratios are
formed within a round. What takes more than 30 s is timed once, in the warm-up. Results that have a float64 reference
are checked against it before anything is printed of them. Status 1 if one is wrong.
"""

import json
import sys
from collections.abc import Mapping
from math import inf
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
import yaml
from cases import Case, clipfuse_case, every_chain, parse, peer_cases
from limits import PRODUCTS, limit
from make_pool import Arch, Recipe, make_pool
from measure import ProcessError, Run, cores, floor, import_torch, load, machine, run_process, spread
from peers import HERE

from clipfuse.errors import ConfigError
from clipfuse.fusion.chain import configure

DEFAULT = ("task_arithmetic", "ties_merging")


def check(case: Case, models: list[Path], out: Path) -> str:
    """What the float64 reference and transformers say of a result."""
    from reference import distance, loads

    told = [] if case.reference is None else [str(distance(case.reference, models, out / "model.safetensors"))]
    if case.tool == "clipfuse":
        try:
            told.append(loads(out))
        except RuntimeError as error:
            told.append(f"WRONG: transformers refuses it: {error}")
    return "; ".join(told) or "not checked"


def memory(case: Case, bare: Run) -> float | None:
    """Peak anonymous memory above `import torch`, MB."""
    if case.warm is None or case.warm.anonymous is None or bare.anonymous is None:
        return None
    return (case.warm.anonymous - bare.anonymous) / 1e6


def table(cases: list[Case], floors: list[float], bare: Run, asked: Mapping[str, tuple[str, str]]) -> str:
    """Markdown; ratios are medians of the rounds' ratios with their range."""

    def ratio(seconds: list[float]) -> str:
        lows = floors if len(seconds) == len(floors) else [median(floors)] * len(seconds)  # a slow case has one
        return spread([second / low for second, low in zip(seconds, lows, strict=True)], 1) if seconds else "-"

    lines = [
        "| tool | rules | process, s | × floor | merge alone, s | × floor | limit | "
        "anonymous MB over import torch | limit | RSS MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        taken = memory(case, bare)
        time_limit, memory_limit = asked.get(case.chain, ("-", "-")) if case.tool == "clipfuse" else ("-", "-")
        cells = [case.tool, case.chain, spread(case.seconds), ratio(case.seconds)]
        cells += [spread(case.inside) if case.inside else "-", ratio(case.inside), time_limit]
        cells += ["no /proc" if taken is None else f"{taken:,.0f}", memory_limit]
        cells += [f"{case.warm.resident / 1e6:,.0f}" if case.warm and case.warm.resident else "no /proc"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def within(taken: float | None, most: float) -> str:
    """ "ok" or "OVER"; nothing where nothing is asked or measured."""
    return "" if taken is None or most == inf else " ok" if taken <= most else " **OVER**"


def judge(
    cases: list[Case], arch: str | None, tasks: list[str], floors: list[float], bare: Run, products: float | None
) -> dict[str, tuple[str, str]]:
    """(limit of seconds, limit of MB) as cells, by chain, with a word of whether it is kept."""
    cells = {}
    for case in cases:
        if case.tool != "clipfuse":
            continue
        asked = limit(case.chain, configure(**parse(case.chain, tasks)), arch, len(tasks), median(floors), products)
        inside = median(case.inside) if case.inside else None
        seconds = f"{asked.why}{within(inside, asked.seconds)}" if asked.why else "-"
        most = f"{asked.memory:,.0f}{within(memory(case, bare), asked.memory)}" if asked.memory < inf else "-"
        cells[case.chain] = (seconds, most)
    return cells


def compare_peers(cases: list[Case]) -> list[str]:
    """Ratio of every peer's row to ours of the same chain."""
    lines = []
    for theirs in (case for case in cases if case.tool != "clipfuse"):
        mine = next((case for case in cases if case.tool == "clipfuse" and case.chain == theirs.chain), None)
        if mine is None:  # it was left out
            continue
        for what, a, b in (("processes", theirs.seconds, mine.seconds), ("merges alone", theirs.inside, mine.inside)):
            if a and b:
                times = f"{median(a) / median(b):.1f} × the time ({min(a) / max(b):.1f}-{max(a) / min(b):.1f})"
                lines.append(f"* {theirs.tool} / clipfuse, {theirs.chain}, {what}: {times}")
    return lines


def warm_up(cases: list[Case], weights: list[Path], scratch: Path, checks: bool) -> None:
    """Run every case once; those that fail are named and taken out."""
    for case in list(cases):
        try:
            case.warm_up(scratch, (lambda out, case=case: check(case, weights, out)) if checks else None)
        except ProcessError as error:
            print(f"{case.tool} {case.chain} is left out: {error}")
            cases.remove(case)


def main(
    case: Annotated[list[str] | None, typer.Option(help="Chains such as dare+task_arithmetic, or all.")] = None,
    pool: Annotated[Path | None, typer.Option(help="YAML of another pool; few limits are known of it.")] = None,
    arch: Annotated[Arch, typer.Option(help="Of the random pool.")] = "b32",
    experts: Annotated[int, typer.Option(min=1, help="Of the random pool; more than eight share eight files.")] = 8,
    runs: Annotated[int, typer.Option(min=1, help="Timed rounds after the warm-up.")] = 5,
    peers: Annotated[bool, typer.Option("--peers", help="FusionBench and mergekit too (installs them once).")] = False,
    patience: Annotated[float, typer.Option(help="Seconds after which a peer's merge is given up.")] = 900,
    checks: Annotated[bool, typer.Option("--check/--no-check", help="Compare results with float64.")] = True,
    root: Annotated[Path, typer.Option(help="Where pools, environments and outputs lie.")] = Path(".bench"),
) -> None:
    """Time merges beside the floor, and check them."""
    known = None if pool else arch
    pool = pool or make_pool(root / arch, Recipe(arch), experts, min(experts, 8))
    models = yaml.safe_load(pool.read_text(encoding="utf-8"))["models"]
    weights = [Path(model["path"]) / "model.safetensors" for model in models]
    tasks = [model["name"] for model in models if model["name"] != "_pretrained_"]
    chains = list(case or DEFAULT)
    chains = [chain for name in chains for chain in (every_chain(tasks) if name == "all" else [name])]
    scratch = root.absolute() / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    cases = []
    for chain in list(chains):
        try:
            cases.append(clipfuse_case(chain, pool, tasks))
        except ConfigError as error:
            print(f"clipfuse {chain} is left out: {error}")
            chains.remove(chain)
    cases += peer_cases(chains, pool, weights, root, patience) if peers else []

    print(f"\n{machine()}\n")
    floor(weights, scratch, weights[0].stat().st_size, cores())
    warm_up(cases, weights, scratch, checks)
    bare = import_torch(watch=True)
    parts: list[tuple[float, float]] = []
    imports: list[float] = []
    for _ in range(runs):
        parts.append(floor(weights, scratch, weights[0].stat().st_size, cores()))
        imports.append(import_torch().seconds)
        for entry in cases:
            if not entry.slow:
                entry.measure(scratch)
    products = None
    if any(entry.chain in PRODUCTS for entry in cases):
        told = run_process([sys.executable, str(HERE / "matmuls.py"), str(pool)]).output
        products = json.loads(told)["seconds"]

    floors = [reading + writing for reading, writing in parts]
    reading, writing = spread([part[0] for part in parts]), spread([part[1] for part in parts])
    size = sum(path.stat().st_size for path in weights)
    print(f"floor: {spread(floors)} s = reading {size / 1e9:.2f} GB {reading} + writing one model {writing}")
    print(f"`import torch` alone: {spread(imports)} s, {(bare.anonymous or 0) / 1e6:,.0f} MB anonymous")
    print(f"median (range) of {runs} rounds; load {load()} at the end; × floor within each round\n")
    print(f"{table(cases, floors, bare, judge(cases, known, tasks, floors, bare, products))}\n")
    if checks:
        for verdict in dict.fromkeys(entry.verdict for entry in cases):
            print(f"* {verdict}: {', '.join(f'{e.tool} {e.chain}' for e in cases if e.verdict == verdict)}")
    print("\n".join(compare_peers(cases)))
    own = [entry for entry in cases if entry.tool == "clipfuse"]
    if len(own) < len(chains) or any("WRONG" in entry.verdict for entry in own):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
