"""Check that what clipfuse writes is loaded whole by transformers 4, which takes other names than transformers 5 does.

transformers 4 only warns when it initialises at random what it misses in a file, so nothing would be seen without
this. Makes an environment of its own (about 1 GB, kept for the next time), merges the tiny pool, and compares every
tensor and the pooled output on a fixed input with what the transformers of the current environment gives.

    python scripts/check_transformers4.py [--environment .bench/transformers4]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

TORCH = "torch==2.13.0"
REQUIREMENTS = ("transformers==4.57.6", "safetensors", "numpy")
TOLERANCE = 1e-5
"""Of the pooled output: kernels of the two versions may order their sums differently."""
EXPECTED = ".expected.safetensors"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--environment", type=Path, default=Path(".bench/transformers4"), help="made if it is absent")
    parser.add_argument("--compare", type=Path, help=argparse.SUPPRESS)  # what runs inside that environment
    arguments = parser.parse_args()
    if arguments.compare:
        return compare(arguments.compare)
    python = environment(arguments.environment.absolute())
    with tempfile.TemporaryDirectory() as folder:
        for model in write_models(Path(folder)):
            write_expected(model)
        return subprocess.run([python, __file__, "--compare", folder], env=clean_environ(), check=False).returncode


def environment(folder: Path) -> Path:
    """The Python of the environment, made with its packages unless that was finished before."""
    python, finished = folder / "bin" / "python", folder / "finished"
    if finished.is_file() and finished.read_text() == " ".join([TORCH, *REQUIREMENTS]):
        return python
    print(f"making {folder} with {TORCH} and {REQUIREMENTS[0]}: some minutes", flush=True)
    finished.unlink(missing_ok=True)
    venv.create(folder, with_pip=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(TORCH + "\n")
    environ = clean_environ() | {"PIP_CONSTRAINT": str(constraints)}
    for packages in ([TORCH], REQUIREMENTS):  # torch first: a resolver left free takes a CUDA build
        subprocess.run([python, "-m", "pip", "install", "-qq", *packages], env=environ, check=True)
    finished.write_text(" ".join([TORCH, *REQUIREMENTS]))
    return python


def clean_environ() -> dict[str, str]:
    """The environment's variables without those that would lead its Python to the packages of this one."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def write_models(folder: Path) -> list[Path]:
    """What clipfuse writes: a merge in float32 and float16, and an expert through the pool's `save_model`."""
    import clipfuse

    pool = clipfuse.HuggingFaceClipVisionPool.from_yaml("tiny_TA8")
    clipfuse.merge(pool, "task_arithmetic", out=folder / "merged")
    clipfuse.merge(pool, "task_arithmetic", dtype="float16", out=folder / "merged_float16")
    pool.save_model(pool.load_model(pool.model_names[0]), folder / "save_model")
    return sorted(folder.iterdir())


def write_expected(model: Path) -> None:
    """Beside a model's folder: its tensors, an input, and the pooled output, all by the current transformers."""
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPVisionModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    vision = CLIPVisionModel.from_pretrained(model, dtype=torch.float32).eval()
    side = int(vision.config.to_dict()["image_size"])
    pixels = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    tensors = {bare(name): tensor.contiguous() for name, tensor in vision.state_dict().items()}
    with torch.no_grad():
        tensors |= {"pixels": pixels, "pooled": vision(pixels).pooler_output}
    save_file(tensors, model.with_name(model.name + EXPECTED))


def bare(name: str) -> str:
    return name.removeprefix("vision_model.")


def compare(folder: Path) -> int:
    """Load every model of `folder` in this environment and print a line for each; 0 if all of them are whole."""
    import transformers

    print(f"transformers {transformers.__version__}")
    faults = {model.name: fault(model) for model in sorted(folder.iterdir()) if model.is_dir()}
    for name, found in faults.items():
        print(f"  {name:16} {found or 'whole: no key missing, unexpected or mismatched; tensors and output equal'}")
    good = bool(faults) and not any(faults.values())
    print("loads as written" if good else "DOES NOT load as written")
    return 0 if good else 1


def fault(model: Path) -> str | None:
    """What is wrong with a loaded model, None if nothing is."""
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPVisionModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # its warning names every key; one is enough here
    expected = load_file(model.with_name(model.name + EXPECTED))
    pixels, pooled = expected.pop("pixels"), expected.pop("pooled")
    loaded: Any = CLIPVisionModel.from_pretrained(model, output_loading_info=True, dtype=torch.float32)
    vision, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info[kind]:
            return f"{len(info[kind])} {kind}, e.g. {min(map(str, info[kind]))}"
    found = {bare(name): tensor for name, tensor in vision.state_dict().items()}
    if odd := found.keys() ^ expected.keys():
        return f"{len(odd)} parameters are on one side only, e.g. {min(odd)}"
    if different := [name for name in found if not torch.equal(found[name], expected[name])]:
        return f"{len(different)} tensors differ, e.g. {different[0]}"
    with torch.no_grad():
        distance = float((vision.eval()(pixels).pooler_output - pooled).abs().max())
    return None if distance <= TOLERANCE else f"the pooled output differs by {distance:.2g}"


if __name__ == "__main__":
    sys.exit(main())
