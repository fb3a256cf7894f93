"""The tools that people use today, each in an environment of its own under .bench/, on the same files.

FusionBench is driven by peer_fusionbench.py, which calls its own algorithm classes (its command line is tied to the
hub); the process is timed whole. mergekit is its command `mergekit-pytorch`, which merges safetensors files of any
model: `mergekit-yaml` plans no tensors for a CLIPVisionModel and writes none. mergekit's TIES trims each tensor by
itself, which is less work than the whole-model trim of the published figures and gives another result.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"
"""Installed first and held, so that no peer brings another torch, or CUDA, or a torchvision that does not fit."""
PATIENCE = 600
"""Seconds that an installation may take."""
METHODS = ("task_arithmetic", "ties_merging")


@dataclass(frozen=True)
class Job:
    """A merge that a peer is asked for: a method with its default constants, a pool's YAML, a folder to write."""

    method: str
    pool: Path
    out: Path


@dataclass(frozen=True)
class Peer:
    """Another tool: what pip installs for it, and the command of a job in its environment."""

    name: str
    packages: Sequence[str]
    """What pip is asked for, pinned."""
    module: str
    command: Callable[[Path, Job], list[str]]
    """(the environment's bin folder, job) → command; may write a configuration beside the output."""
    same_rules: Sequence[str]
    """Methods whose result should be ours, up to rounding."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """Methods that take much memory: how many times the size of the pool. They are left out where it is not free."""

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
    return [str(binaries / "python"), str(HERE / "peer_fusionbench.py"), job.method, str(job.pool), str(job.out)]


def mergekit(binaries: Path, job: Job) -> list[str]:
    models = yaml.safe_load(job.pool.read_text(encoding="utf-8"))["models"]
    base, *experts = (f"{model['path']}/model.safetensors" for model in models)
    ties = job.method == "ties_merging"
    each: Mapping[str, float] = {"weight": 0.3, **({"density": 0.2} if ties else {})}
    tree = {
        "merge_method": "ties" if ties else "task_arithmetic",
        "base_model": base,
        "models": [{"model": expert, "parameters": dict(each)} for expert in experts],
        "parameters": {"normalize": False},
        "dtype": "float32",
    }
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
        METHODS,
        memory={"ties_merging": 7.5},
    ),
    Peer("mergekit", ("mergekit==0.1.5",), "mergekit", mergekit, METHODS[:1]),
)
