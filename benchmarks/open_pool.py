"""Opening an eight-expert ViT-L/14 pool and printing its summary: seconds after imports, and memory.

    python benchmarks/open_pool.py            # files of the real sizes, full of holes: 11 GB that take no room on disk

Nothing of a pool's weights is read to open it, so files without contents do; the layouts are the hub's and OpenCLIP's.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from make_pool import EXPERTS
from measure import machine, run_process, spread

from clipfuse.checkpoints.geometry import Geometry, parameter_shapes
from clipfuse.checkpoints.names import hub_name
from clipfuse.checkpoints.openclip import theirs
from clipfuse.checkpoints.parts import THIRDS
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter

LARGE = Geometry(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    patch_size=14,
    projection_dim=768,
)
OPEN = """
import resource, sys, time
import clipfuse.cli.check, clipfuse.run.plan, clipfuse.pool, clipfuse.fusion.merge, torch
from clipfuse.cli.main import main
start, floor = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    main()
finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"MEASURED {time.perf_counter() - start} {peak} {floor}")
"""


def write_holes(path: Path, specs: dict[str, TensorSpec]) -> None:
    """A safetensors file of the right size whose tensors are zeros that were never written."""
    with SafetensorsWriter(path, specs) as writer:
        size = writer.size
    with path.open("r+b") as file:
        file.truncate(size)


def hub_specs() -> dict[str, TensorSpec]:
    return {hub_name(name): TensorSpec(shape, torch.float32) for name, shape in parameter_shapes(LARGE).items()}


def openclip_specs() -> dict[str, TensorSpec]:
    found = {"visual.proj": TensorSpec((1024, 768), torch.float32)}
    for name, spec in hub_specs().items():
        stored, part = theirs(name)
        shape = (3 * spec.shape[0], *spec.shape[1:]) if part in THIRDS else spec.shape
        found[stored] = TensorSpec(shape, torch.float32)
    return found


def make(folder: Path, layout: str) -> Path:
    """The pool's folder, `_pretrained_` and eight experts."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("_pretrained_", *EXPERTS):
        place = folder / name
        place.mkdir(parents=True)
        if layout == "hub":
            (place / "config.json").write_text(json.dumps(LARGE.to_config()))
            write_holes(place / "model.safetensors", hub_specs())
        else:
            (place / "open_clip_config.json").write_text(
                '{"model_cfg": {"quick_gelu": true, "vision_cfg": {"width": 1024}}}'
            )
            write_holes(place / "open_clip_model.safetensors", openclip_specs())
    return folder


def main(rounds: Annotated[int, typer.Option(min=1)] = 5) -> None:
    """Measure and print."""
    print(machine())
    for layout in ("hub", "openclip"):
        folder = make(Path(".bench/holes"), layout)
        seconds, peaks, added = [], [], []
        for _ in range(rounds):
            words = ["check", "method=task_arithmetic", f"modelpool={folder}"]
            done = run_process([sys.executable, "-c", OPEN, *words])
            told = next(line for line in done.output.splitlines() if line.startswith("MEASURED")).split()
            seconds.append(float(told[1]))
            peaks.append(int(told[2]) / 1024)
            added.append((int(told[2]) - int(told[3])) / 1024)
        print(
            f"{layout}: {spread(seconds)} s after imports (wanted: < 2); {spread(peaks, 0)} MB in all, "
            f"{spread(added, 0)} MB above the imports (wanted: < 300)"
        )
        shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
