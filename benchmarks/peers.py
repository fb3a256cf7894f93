"""The tools that people use today, each in an environment of its own under .bench/, on the same files.

FusionBench is driven by peer_fusionbench.py, which calls its own algorithm classes (its command line is tied to the
hub); the process is timed whole. mergekit is its command `mergekit-pytorch`, which merges safetensors files of any
model: `mergekit-yaml` plans no tensors for a CLIPVisionModel and writes none. mergekit trims each tensor by itself
where the published figures trim the whole model, and rescales what DARE and DELLA keep to the norm of what was there,
so that it does less work and gives other results; only its sums and means should be ours.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from comparisons import comparisons

HERE = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"
"""Installed first and held, so that no peer brings another torch, or CUDA, or a torchvision that does not fit."""
PATIENCE = 600
"""Seconds that an installation may take."""
Words = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A merge that a peer is asked for: a chain with its default constants, a pool's YAML, a folder to write."""

    chain: str
    pool: Path
    out: Path

    @property
    def models(self) -> list[Words]:
        return yaml.safe_load(self.pool.read_text(encoding="utf-8"))["models"]


@dataclass(frozen=True)
class Peer:
    """Another tool: what pip installs for it, and the command of a job in its environment."""

    name: str
    packages: Sequence[str]
    """What pip is asked for, pinned."""
    module: str
    command: Callable[[Path, Job], list[str]]
    """(the environment's bin folder, job) → command; may write a configuration beside the output."""
    chains: Sequence[str]
    """What it can do of what clipfuse does."""
    same_rules: Sequence[str]
    """Chains whose result should be ours, up to rounding."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """Chains that take much memory: how many times the size of the pool. They are left out where it is not free."""

    def environment(self, root: Path) -> Path:
        return root.absolute() / f"peer-{self.name.lower()}"

    def install(self, root: Path) -> str | None:
        """Make its environment unless it is there; None, or the reason why it cannot be had."""
        python = self.environment(root) / "bin" / "python"
        held = root.absolute() / f"constraints-{self.name.lower()}.txt"
        if failure := attempt([python, "-c", f"import {self.module}"]):
            root.mkdir(parents=True, exist_ok=True)
            held.write_text("\n".join([TORCH, *self.packages]) + "\n", encoding="utf-8")
            pip = [python, "-m", "pip", "install", "-q", "-c", held]
            steps = [[sys.executable, "-m", "venv", self.environment(root)], [*pip, TORCH], [*pip, *self.packages]]
            for step in [*steps, [python, "-c", f"import {self.module}"]]:
                if failure := attempt(step):
                    break
        return failure

    def job(self, root: Path, job: Job) -> list[str]:
        """The command that does a job."""
        return self.command(self.environment(root) / "bin", job)


def attempt(command: Sequence[str | Path]) -> str | None:
    """None if a command succeeds, else the last line of what it said."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.CalledProcessError as error:
        return (error.stderr.strip().splitlines() or [f"status {error.returncode}"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None


def fusionbench(binaries: Path, job: Job) -> list[str]:
    row = next(row for row in comparisons(len(job.models) - 1) if row.name == job.chain)
    arguments = {**row.arguments, **FULL.get(job.chain, {})}
    told = {"name": row.name, "theirs": row.theirs, "arguments": arguments, "pool": str(job.pool), "out": str(job.out)}
    return [str(binaries / "python"), str(HERE / "peer_fusionbench.py"), json.dumps([told])]


FULL: Mapping[str, Mapping[str, Any]] = {"wudi": {"iter_num": 400}, "dop": {"num_steps": 200}}
"""Steps that are timed, where the comparison of results takes fewer."""

MERGEKIT: Mapping[str, tuple[str, Words, Words]] = {
    "simple_average": ("linear", {"weight": 1.0}, {}),
    "task_arithmetic": ("task_arithmetic", {"weight": 0.3}, {"normalize": False}),
    "ties_merging": ("ties", {"weight": 0.3, "density": 0.2}, {"normalize": False}),
    "model_stock": ("model_stock", {}, {}),
    "multi_slerp": ("karcher", {}, {"max_iter": 20}),
    "dare+task_arithmetic": ("dare_linear", {"weight": 0.3, "density": 0.5}, {"normalize": False}),
    "dare+ties_merging": ("dare_ties", {"weight": 0.3, "density": 0.5}, {"normalize": False}),
    "breadcrumbs+task_arithmetic": (
        "breadcrumbs",
        {"weight": 0.3, "density": 0.9, "gamma": 0.01},
        {"normalize": False},
    ),
    "della+task_arithmetic": (
        "della_linear",
        {"weight": 0.3, "density": 0.5, "epsilon": 0.1},
        {"normalize": False},
    ),
}
"""Our chain → its method, what each model gets, what all get."""
NO_BASE = ("simple_average", "multi_slerp")


def mergekit(binaries: Path, job: Job) -> list[str]:
    base, *experts = (f"{model['path']}/model.safetensors" for model in job.models)
    name, each, every = MERGEKIT[job.chain]
    models = [{"model": expert, **({"parameters": dict(each)} if each else {})} for expert in experts]
    tree: Words = {"merge_method": name, "models": models, "parameters": every, "dtype": "float32"}
    if job.chain not in NO_BASE:
        tree["base_model"] = base
    job.out.mkdir(parents=True, exist_ok=True)
    recipe = job.out / "mergekit.yaml"
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return [str(binaries / "mergekit-pytorch"), "--quiet", str(recipe), str(job.out)]


PEERS = (
    Peer(
        "FusionBench",
        ("fusion-bench==0.2.33", "transformers==4.57.6"),
        "fusion_bench",
        fusionbench,
        tuple(row.name for row in comparisons(8) if row.pool == "experts" and not row.suffix),
        ("task_arithmetic", "ties_merging"),
        memory={"ties_merging": 7.5, "dare+ties_merging": 7.5, "consensus": 7.5},
    ),
    Peer("mergekit", ("mergekit==0.1.5",), "mergekit", mergekit, tuple(MERGEKIT), ("task_arithmetic",)),
)
