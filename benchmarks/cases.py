"""What merge.py times: a chain of rules by clipfuse or by a peer, run as whole processes from disk to disk."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from measure import Run, available_memory, run_process
from peers import PEERS, Job

from clipfuse.errors import ConfigError
from clipfuse.fusion.chain import configure
from clipfuse.fusion.registry import EDITS, FINISHES, METHODS, find

OFFLINE = {"HF_HUB_OFFLINE": "1"}
SLOW = 30
"""A case whose warm-up takes more seconds than this is not timed again: its row shows the warm-up."""
REFERENCES = ("task_arithmetic", "ties_merging")
"""Chains that reference.py can check at any size."""

NEEDED: Mapping[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "weighted_average": lambda tasks: {"weights": [1.0 + k % 3 for k in range(len(tasks))]},
    "breadcrumbs": lambda tasks: {"density": 0.9, "top": 0.01},
    "della": lambda tasks: {"density": 0.5, "epsilon": 0.1},
    "magnitude_prune": lambda tasks: {"keep": 0.2},
    "truncate": lambda tasks: {"rank_fraction": 0.1},
    "quantise": lambda tasks: {"bits": 4},
    "factors": lambda tasks: {"factors": {tasks[0]: -0.5}},
    "lines": lambda tasks: {"alpha": 0.2, "beta": 0.8},
    "scales": lambda tasks: {"scales": {"encoder.*": 0.5}},
    "svc": lambda tasks: {"alpha": 0.1},
}
"""Experts' names → settings without a default, by rule."""
VARIANTS = ("dare+ties_merging", "wudi(solver=closed)")
"""Chains that `--case all` times besides every method, and every edit and finish with task_arithmetic."""


@dataclass
class Case:
    """One row of the table: a tool, a chain of rules, and what was measured."""

    tool: str
    chain: str
    command: Callable[[Path], list[str]]
    """Folder to write → command."""
    reference: str | None = None
    """Name of the float64 reference that its result is checked against."""
    limit: float | None = None
    """Seconds after which it is given up."""
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
            done = run_process(self.command(out), watch, OFFLINE, self.limit)
            if look:
                self.verdict = look(out)
            return done
        finally:
            shutil.rmtree(out, ignore_errors=True)

    @property
    def slow(self) -> bool:
        return self.warm is not None and self.warm.seconds > SLOW

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


def parse(chain: str, tasks: Sequence[str]) -> dict[str, Any]:
    """`dare(drop=0.9)+wudi(solver=closed)+expo` → edits, method, finishes, with the settings that have no default.

    Raises:
        ConfigError: a name that this clipfuse does not have.
    """
    found: dict[str, Any] = {"edits": [], "method": None, "finishes": []}
    for word in chain.split("+"):
        name, given = re.fullmatch(r"(\w+)(?:\((.*)\))?", word).groups()  # type: ignore[union-attr]
        settings = NEEDED[name](tasks) if name in NEEDED else {}
        settings |= {k: yaml.safe_load(v) for k, v in (part.split("=") for part in (given or "").split(",") if part)}
        part = {"name": name, **settings}
        if name in EDITS or name in FINISHES:
            found["edits" if name in EDITS else "finishes"].append(part)
        else:
            found["method"] = {**part, "name": find("method", name).name}
    return found


def every_chain(tasks: Sequence[str]) -> list[str]:
    """Every method that needs no data, every edit and finish with task_arithmetic, and VARIANTS, by what is registered.

    Methods of a fixed number of experts other than the pool's are left out.
    """
    chains = [name for name, rule in METHODS.items() if rule.models in (None, len(tasks))]
    chains += [f"{edit}+task_arithmetic" for edit in EDITS] + [f"task_arithmetic+{finish}" for finish in FINISHES]
    known = METHODS | EDITS | FINISHES
    chains += [chain for chain in VARIANTS if all(word.partition("(")[0] in known for word in chain.split("+"))]
    found = []
    for chain in chains:
        try:
            if not configure(**parse(chain, tasks)).uses:
                found.append(chain)
        except ConfigError as error:  # a setting without a default that NEEDED lacks
            print(f"clipfuse {chain} is left out: {error}")
    return found


def as_word(value: Any) -> str:
    """A value in the command line's grammar: quoted keys are not understood."""
    return yaml.safe_dump([value], default_flow_style=True, width=10**6).strip()[1:-1]


def clipfuse_case(chain: str, pool: Path, tasks: Sequence[str]) -> Case:
    """`dare+task_arithmetic` → clipfuse merge method=task_arithmetic edits=[…]. Raises as `parse`."""
    tree = parse(chain, tasks)
    program = str(Path(sys.executable).with_name("clipfuse"))
    words = ["method=" + tree["method"].pop("name"), f"modelpool={pool}"]
    words += [f"method.{key}={as_word(value)}" for key, value in tree["method"].items()]
    for group in ("edits", "finishes"):
        if tree[group]:
            words.append(f"{group}=[{','.join(part['name'] for part in tree[group])}]")
            settings = ((part["name"], key, value) for part in tree[group] for key, value in part.items())
            words += [f"{group}.{name}.{key}={as_word(value)}" for name, key, value in settings if key != "name"]
    reference = chain if chain in REFERENCES else None
    return Case("clipfuse", chain, lambda out: [program, "merge", *words, "--out", str(out), "--json"], reference)


def peer_cases(chains: list[str], pool: Path, weights: list[Path], root: Path, limit: float) -> list[Case]:
    """The same chains by every peer that can be had; says why of those that cannot."""
    cases = []
    for peer in PEERS:
        if reason := peer.install(root):
            print(f"{peer.name} is left out: {reason}")
            continue
        for chain in (chain for chain in chains if chain in peer.chains):
            needed = peer.memory.get(chain, 3) * sum(path.stat().st_size for path in weights)
            if (free := available_memory()) is not None and free < needed:
                print(f"{peer.name} {chain} is left out: needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} are free")
                continue

            def command(out: Path, peer=peer, chain: str = chain) -> list[str]:
                return peer.job(root, Job(chain, pool.absolute(), out))

            cases.append(Case(peer.name, chain, command, chain if chain in peer.same_rules else None, limit))
    return cases
