"""How far clipfuse and FusionBench 0.2.33 are apart on the same checkpoints, and who is nearer to float64.

    python benchmarks/parity_fusionbench.py                              # every method that both have; a small tower
    python benchmarks/parity_fusionbench.py --method iso_cts --fresh     # theirs anew, not from the last time
    python benchmarks/parity_fusionbench.py --pool .bench/b32/pool.yaml --method ties_merging --no-exact

Prints ‖Δ_ours − Δ_theirs‖ / ‖Δ_theirs‖ over all tensors and for the worst one; status 1 if a method that should agree
does not, or if ours is not within 1e-4 of the float64 reference. Their results are kept in .bench and asked for once.
"""

import hashlib
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from comparisons import Comparison, comparisons
from exact import RULES, Model, Tensors
from exact_steps import STEPS
from make_pool import Recipe, make_pool
from peers import HERE, PEERS
from safetensors.torch import load_file

import clipfuse
from clipfuse.fusion.registry import EDITS, FINISHES, METHODS

EXACT = {**RULES, **STEPS}
NEAR = 1e-4
"""‖Δ − Δ_float64‖ / ‖Δ_float64‖ that ours must keep."""
STATISTICS = 0.02
"""Largest relative difference of the statistics of random rules."""
SMALL = Recipe(layers=2, width=192, correlation=0.5)
DISTANT = Recipe(layers=2, width=192, spread=5e-3)
"""Of two models so far apart that slerp takes the arc (cosine below 0.9995) in most tensors."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    cells: Sequence[str]
    verdict: str
    wrong: bool = False

    def __str__(self) -> str:
        return f"| {' | '.join([self.name, *self.cells, self.verdict])} |"


def read(folder: Path) -> Tensors:
    """The vision tower's weights in float64, by the names of clipfuse."""
    prefix = "vision_model."
    found = load_file(folder / "model.safetensors").items()
    return {name.removeprefix(prefix): tensor.double() for name, tensor in found if name.startswith(prefix)}


def read_pool(file: Path) -> Model:
    """A pool's base and task vectors; without a base, from the first model on."""
    models = yaml.safe_load(file.read_text(encoding="utf-8"))["models"]
    base = read(Path(models[0]["path"]))
    experts = [read(Path(m["path"])) for m in models if m["name"] != "_pretrained_"]
    return Model(base, {name: torch.stack([expert[name] for expert in experts]) - base[name] for name in base})


def minus(tensors: Mapping[str, Any], base: Tensors) -> Tensors:
    return {name: tensors[name].double() - base[name] for name in base}


def make_pools(given: Path | None, root: Path) -> dict[str, Path]:
    """YAML of each kind of pool that a comparison may ask for."""
    whole = given or make_pool(root / "parity", SMALL, 5)
    distant = given or make_pool(root / "parity-distant", DISTANT, 2)
    pools = {"experts": whole}
    for kind, source, chosen in (("one", whole, slice(0, 2)), ("pair", distant, slice(1, 3))):
        tree = yaml.safe_load(source.read_text(encoding="utf-8"))
        pools[kind] = source.with_name(f"{kind}.yaml")
        pools[kind].write_text(yaml.safe_dump({**tree, "models": tree["models"][chosen]}), encoding="utf-8")
    return pools


def run_theirs(rows: Sequence[Comparison], pools: dict[str, Path], root: Path, fresh: bool) -> dict[str, Path | str]:
    """Folder of their result, or their error, by the comparison's name."""
    python = PEERS[0].environment(root) / "bin" / "python"
    results: dict[str, Path | str] = {}
    jobs = []
    for row in rows:
        pool = pools[row.pool]
        job = {"theirs": row.theirs, "arguments": row.arguments, "pool": str(pool.absolute()), "name": row.name}
        recipe = (pool.parent / "recipe.json").read_text() if (pool.parent / "recipe.json").exists() else ""
        key = hashlib.sha256((json.dumps(job, sort_keys=True) + pool.read_text() + recipe).encode()).hexdigest()[:12]
        results[row.name] = out = root / "theirs" / f"{row.method}-{key}"
        if fresh or not (out / "model.safetensors").exists():
            jobs.append({**job, "out": str(out.absolute())})
    if jobs:
        print(f"FusionBench: {len(jobs)} merges, once")
        command = [str(python), str(HERE / "peer_fusionbench.py"), json.dumps(jobs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if len(told) != len(jobs):
            raise typer.BadParameter(f"FusionBench stopped after {len(told)} merges: …{done.stderr[-800:]}")
        results.update({line["name"]: line["error"] for line in told if "error" in line})
    return results


def run_ours(row: Comparison, pool: Path) -> Mapping[str, Any] | str:
    """Our tensors, or the rule that this clipfuse does not have."""
    named = [(METHODS, row.method), *((EDITS, e["name"]) for e in row.edits)]
    named += [(FINISHES, finish["name"]) for finish in row.finishes]
    if missing := [name for table, name in named if name not in table]:
        return f"{', '.join(missing)}: not in this clipfuse"
    chain = {"edits": list(row.edits), "finishes": list(row.finishes)}
    return clipfuse.merge(pool, row.method, **chain, **row.settings).tensors


def run_exact(row: Comparison, model: Model) -> Tensors:
    """Δ in float64."""
    for edit in row.edits:
        model = EXACT[edit["name"]](model, **without_name(edit))
    merged = EXACT[row.method](model, **row.settings)
    for finish in row.finishes:
        merged = EXACT[finish["name"]](model, merged, **without_name(finish))
    return merged


def without_name(words: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in words.items() if key != "name"}


def apart(found: Tensors, wanted: Tensors) -> float:
    """‖found − wanted‖ / ‖wanted‖ over all tensors; 0 / 0 is 0."""
    off = sum(float((found[name] - wanted[name]).square().sum()) for name in wanted) ** 0.5
    return off / size if (size := sum(float(t.square().sum()) for t in wanted.values()) ** 0.5) else off


def statistics(delta: Tensors, model: Model) -> list[float]:
    """⟨Δ, Στ⟩ / ‖Στ‖², ‖Δ‖ / ‖Στ‖ and the share of entries that are not 0: what random rules have in common."""
    found = torch.cat([delta[name].flatten() for name in model.base])
    total = model.flat().sum(0)
    return [
        float(found @ total / total.square().sum()),
        float(found.norm() / total.norm()),
        float((found != 0).double().mean()),
    ]


def compare(row: Comparison, pool: Path, theirs: Path | str, exact: bool) -> Row:
    """Judge one comparison."""
    model = read_pool(pool)
    ours = run_ours(row, pool)
    if isinstance(theirs, str):
        return Row(row.name, ["-"] * 4, f"theirs fails: {theirs}", wrong=True)
    other = minus(read(theirs), model.base)
    names = [name for name in model.base if not re.search(row.without, name)]
    pick = lambda tensors: {name: tensors[name] for name in names}  # noqa: E731
    if row.random:
        if isinstance(ours, str):
            return Row(row.name, ["-"] * 4, ours)
        mine, others = statistics(minus(ours, model.base), model), statistics(other, model)
        off = max(abs(a / b - 1) for a, b in zip(mine, others, strict=True))
        told = "slope, size, share kept: " + ", ".join(f"{a:.4f}/{b:.4f}" for a, b in zip(mine, others, strict=True))
        verdict = f"random, statistics {'agree' if off <= STATISTICS else 'DIFFER'} ({told})"
        return Row(row.name, [f"{off:.1e}", "-", "-", "-"], verdict, off > STATISTICS)
    wanted = run_exact(row, model) if exact else None
    their_error = f"{apart(pick(other), pick(wanted)):.1e}" if wanted else "-"
    if isinstance(ours, str):
        return Row(row.name, ["-", "-", "-", their_error], ours)
    delta = minus(ours, model.base)
    off = apart(pick(delta), pick(other))
    worst, where = max((apart({n: delta[n]}, {n: other[n]}), n) for n in names)
    my_error = apart(pick(delta), pick(wanted)) if wanted else 0.0
    verdicts = ["agree" if off <= row.tolerance else "differ" if not row.agrees else "DIFFER"]
    verdicts += ["OURS IS WRONG"] if my_error > NEAR else []
    verdicts += [row.differs] if row.differs else []
    verdicts += [f"tolerance {row.tolerance:.0e}: {row.looser}"] if row.looser else []
    wrong = my_error > NEAR or (row.agrees and off > row.tolerance)
    cells = [f"{off:.1e}", f"{worst:.1e} {where}", f"{my_error:.1e}" if wanted else "-", their_error]
    return Row(row.name, cells, "; ".join(verdicts), wrong)


def main(
    method: Annotated[list[str] | None, typer.Option(help="Rows or methods; all if not given.")] = None,
    pool: Annotated[Path | None, typer.Option(help="Another pool's YAML, as make_pool.py writes it.")] = None,
    exact: Annotated[bool, typer.Option(help="Compare with float64, which holds the pool in memory.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask FusionBench again.")] = False,
    root: Annotated[Path, typer.Option(help="Where pools, environments and results lie.")] = Path(".bench"),
) -> None:
    """Compare every method that clipfuse and FusionBench both have."""
    if reason := PEERS[0].install(root):
        raise typer.BadParameter(f"FusionBench cannot be had: {reason}")
    pools = make_pools(pool, root)
    rows = comparisons(len(yaml.safe_load(pools["experts"].read_text())["models"]) - 1)
    rows = [row for row in rows if not method or row.name in method or row.method in method]
    theirs = run_theirs(rows, pools, root, fresh)
    print("\n| method | ours vs theirs, all | worst tensor | ours vs float64 | theirs vs float64 | verdict |")
    print("|---|---|---|---|---|---|")
    wrong = False
    for row in rows:
        found = compare(row, pools[row.pool], theirs[row.name], exact)
        wrong |= found.wrong
        print(found, flush=True)
    if not method:
        known = {row.method for row in comparisons(2)} | {
            part["name"] for r in rows for part in (*r.edits, *r.finishes)
        }
        print(f"\nNot compared, FusionBench has none: {', '.join(sorted({*METHODS, *EDITS, *FINISHES} - known))}")
    if wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
