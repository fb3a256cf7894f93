"""Run the tests that touch transformers, datasets and the hub's client with the oldest releases that are supported.

Makes an environment of its own (about 1 GB, kept for the next time).

    python scripts/check_oldest.py [--environment .bench/oldest] [TEST...]
"""

import argparse
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

from check_transformers4 import TORCH, clean_environ

ROOT = Path(__file__).parents[1]
OLDEST = ("transformers==5.6.0", "huggingface_hub==1.31.0", "datasets==5.2.0")
TESTS = ("tests/models", "tests/evaluate", "tests/data", "tests/checkpoints", "tests/end_to_end/test_cli.py")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--environment", type=Path, default=Path(".bench/oldest"), help="made if it is absent")
    parser.add_argument("tests", nargs="*", default=TESTS)
    arguments = parser.parse_args()
    python = environment(arguments.environment.absolute())
    command = [python, "-m", "pytest", "-n", "2", "--timeout", "600", *arguments.tests]
    return subprocess.run(command, env=clean_environ() | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, check=False).returncode


def environment(folder: Path) -> Path:
    """The Python of the environment, made with its packages unless that was finished before."""
    python, finished = folder / "bin" / "python", folder / "finished"
    packages = [*OLDEST, *development(), "-e", str(ROOT)]
    if finished.is_file() and finished.read_text() == " ".join([TORCH, *packages]):
        return python
    print(f"making {folder} with {TORCH} and {', '.join(OLDEST)}: some minutes", flush=True)
    finished.unlink(missing_ok=True)
    venv.create(folder, with_pip=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(TORCH + "\n")
    environ = clean_environ() | {"PIP_CONSTRAINT": str(constraints)}
    for wanted in ([TORCH], packages):  # torch first: a resolver left free takes a CUDA build
        subprocess.run([python, "-m", "pip", "install", "-qq", *wanted], env=environ, check=True)
    finished.write_text(" ".join([TORCH, *packages]))
    return python


def development() -> list[str]:
    """What tests need besides the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["optional-dependencies"]["dev"]


if __name__ == "__main__":
    sys.exit(main())
