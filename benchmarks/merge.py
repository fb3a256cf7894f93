"""How long `clipfuse merge` takes, beside the floor of reading every input and writing the output once.

    python benchmarks/merge.py                        # task_arithmetic and ties_merging, ViT-B/32, eight experts
    python benchmarks/merge.py --case magmax --case dare+task_arithmetic --runs 9
    python benchmarks/merge.py --peers                # FusionBench and mergekit on the same files, in the same run

Whole processes, files in the page cache, one warm-up (in which memory is watched, so that watching slows no timed
run), then rounds of the floor and of every case, so that what else the machine does falls on all of them. Ratios are
formed within a round. Results are checked against a float64 reference before anything is printed of them.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
import yaml
from make_pool import make_pool
from measure import ProcessError, Run, available_memory, cores, floor, import_torch, load, machine, run_process, spread
from peers import METHODS, PEERS, Job

OFFLINE = {"HF_HUB_OFFLINE": "1"}
SLOW = 30
"""A peer whose warm-up takes more seconds than this is not timed again: its row shows the warm-up."""


@dataclass
class Case:
    """One row of the table: a tool, a chain of rules, and what was measured."""

    tool: str
    chain: str
    command: Callable[[Path], list[str]]
    """Folder to write → command."""
    reference: str | None = None
    """Name of the float64 reference that its result is checked against."""
    warm: Run | None = None
    seconds: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    """Seconds of the merge itself, without imports and configuration, as the tool told."""
    verdict: str = "not checked"

    def run(self, scratch: Path, watch: bool = False, look: Callable[[Path], str] | None = None) -> Run:
        """One process from start to end, into a new folder that is removed again; `look` may read it before."""
        out = scratch / "out"
        shutil.rmtree(out, ignore_errors=True)
        try:
            done = run_process(self.command(out), watch, OFFLINE)
            if look:
                self.verdict = look(out)
            return done
        finally:
            shutil.rmtree(out, ignore_errors=True)

    @property
    def slow(self) -> bool:
        return self.tool != "clipfuse" and self.warm is not None and self.warm.seconds > SLOW

    def warm_up(self, scratch: Path, look: Callable[[Path], str] | None) -> None:
        self.warm = self.run(scratch, True, look)
        if self.slow:
            self.record(self.warm)

    def measure(self, scratch: Path) -> None:
        self.record(self.run(scratch))

    def record(self, run: Run) -> None:
        self.seconds.append(run.seconds)
        if (start := run.output.rfind('{"seconds"' if self.tool != "clipfuse" else '{\n  "out"')) >= 0:
            self.inside.append(json.loads(run.output[start:])["seconds"])


def clipfuse_case(chain: str, pool: Path) -> Case:
    """`dare+task_arithmetic` → edits=[dare] method=task_arithmetic."""
    *edits, method = chain.split("+")
    program = str(Path(sys.executable).with_name("clipfuse"))
    words = [f"method={method}", f"modelpool={pool}", *([f"edits=[{','.join(edits)}]"] if edits else [])]
    reference = method if method in METHODS and not edits else None
    return Case("clipfuse", chain, lambda out: [program, "merge", *words, "--out", str(out), "--json"], reference)


def peer_cases(chains: list[str], pool: Path, weights: list[Path], root: Path) -> list[Case]:
    """The same methods by every peer that can be had; says why of those that cannot."""
    cases = []
    for peer in PEERS:
        if reason := peer.install(root):
            print(f"{peer.name} is left out: {reason}")
            continue
        for method in (chain for chain in chains if chain in METHODS):
            needed = peer.memory.get(method, 0) * sum(path.stat().st_size for path in weights)
            if (free := available_memory()) is not None and free < needed:
                print(f"{peer.name} {method} is left out: needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} are free")
                continue

            def command(out: Path, peer=peer, method: str = method) -> list[str]:
                return peer.job(root, Job(method, pool, out))

            cases.append(Case(peer.name, method, command, method if method in peer.same_rules else None))
    return cases


def check(case: Case, models: list[Path], out: Path) -> str:
    """What the float64 reference and transformers say of a result. Raises RuntimeError if transformers refuses it."""
    from reference import distance, loads

    told = [] if case.reference is None else [str(distance(case.reference, models, out / "model.safetensors"))]
    told += [loads(out)] if case.tool == "clipfuse" else []
    return "; ".join(told) or "not checked"


def table(cases: list[Case], floors: list[float], bare: Run) -> str:
    """Markdown; ratios are medians of the rounds' ratios with their range."""

    def ratio(seconds: list[float]) -> str:
        lows = floors if len(seconds) == len(floors) else [median(floors)] * len(seconds)  # a slow peer has one
        return spread([second / low for second, low in zip(seconds, lows, strict=True)], 1) if seconds else "-"

    def memory(case: Case) -> str:
        if case.warm is None or case.warm.anonymous is None or bare.anonymous is None:
            return "no /proc"
        return f"{(case.warm.anonymous - bare.anonymous) / 1e6:,.0f}"

    def resident(case: Case) -> str:
        return f"{case.warm.resident / 1e6:,.0f}" if case.warm and case.warm.resident else "no /proc"

    lines = [
        "| tool | rules | process, s | × floor | merge alone, s | × floor | anonymous MB over import torch | RSS MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        inside = spread(case.inside) if case.inside else "-"
        cells = [case.tool, case.chain, spread(case.seconds), ratio(case.seconds), inside, ratio(case.inside)]
        lines.append(f"| {' | '.join([*cells, memory(case), resident(case)])} |")
    return "\n".join(lines)


def main(
    pool: Annotated[Path | None, typer.Option(help="YAML of a float32 pool; made in .bench/b32 if not given.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="A method, or edit+method; may be given again.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed rounds after the warm-up.")] = 5,
    peers: Annotated[bool, typer.Option("--peers", help="FusionBench and mergekit too (installs them once).")] = False,
    checks: Annotated[bool, typer.Option("--check/--no-check", help="Compare results with float64.")] = True,
    root: Annotated[Path, typer.Option(help="Where pools, environments and outputs lie.")] = Path(".bench"),
) -> None:
    """Time merges beside the floor, and check them."""
    pool = pool or make_pool(root / "b32")
    weights = [Path(model["path"]) / "model.safetensors" for model in yaml.safe_load(pool.read_text())["models"]]
    chains = case or list(METHODS)
    scratch = root.absolute() / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    cases = [clipfuse_case(chain, pool) for chain in chains] + (
        peer_cases(chains, pool, weights, root) if peers else []
    )

    print(f"\n{machine()}\n")
    floor(weights, scratch, weights[0].stat().st_size, cores())
    for entry in list(cases):
        try:
            entry.warm_up(scratch, (lambda out, entry=entry: check(entry, weights, out)) if checks else None)
        except ProcessError as error:
            if entry.tool == "clipfuse":
                raise
            print(f"{entry.tool} {entry.chain} is left out: {error}")
            cases.remove(entry)
    bare = import_torch(watch=True)
    parts: list[tuple[float, float]] = []
    imports: list[float] = []
    for _ in range(runs):
        parts.append(floor(weights, scratch, weights[0].stat().st_size, cores()))
        imports.append(import_torch().seconds)
        for entry in cases:
            if not entry.slow:
                entry.measure(scratch)

    floors = [reading + writing for reading, writing in parts]
    reading, writing = spread([part[0] for part in parts]), spread([part[1] for part in parts])
    size = sum(path.stat().st_size for path in weights)
    print(f"floor: {spread(floors)} s = reading {size / 1e9:.2f} GB {reading} + writing one model {writing}")
    print(f"`import torch` alone: {spread(imports)} s, {(bare.anonymous or 0) / 1e6:,.0f} MB anonymous")
    print(f"median (range) of {runs} rounds; load {load()} at the end; × floor within each round\n")
    print(table(cases, floors, bare))
    if checks:
        print("\n" + "\n".join(f"* {entry.tool} {entry.chain}: {entry.verdict}" for entry in cases))
    own = [entry for entry in cases if entry.tool == "clipfuse"]
    for entry in (entry for entry in cases if entry.tool != "clipfuse"):
        ours = next(mine for mine in own if mine.chain == entry.chain).seconds
        least, most = min(entry.seconds) / max(ours), max(entry.seconds) / min(ours)
        times = f"{median(entry.seconds) / median(ours):.1f} × the time ({least:.1f}-{most:.1f})"
        print(f"* {entry.tool} / clipfuse, {entry.chain}, whole processes: {times}")
    if any("WRONG" in entry.verdict for entry in own):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
