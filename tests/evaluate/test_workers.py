"""Two processes on one evaluation, as torchrun starts them: exact counts, one writer, and resumable."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipfuse.evaluate.record import read_records
from clipfuse.evaluate.workers import Workers, find_workers

pytest.importorskip("accelerate")
WEIGHTS = "pkg://clipfuse/tiny/weights"
MODELS = [f"{WEIGHTS}/tiny-signs", f"{WEIGHTS}/tiny-aerial"]
WORDS = ["evaluate", *MODELS, f"base={WEIGHTS}/base", "taskpool.tasks=[tiny-aerial,tiny-digits]", "batch_size=64"]


def evaluate(processes: int, out: Path, cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=0", "--standalone"]
    start = [*launcher, "-m", "clipfuse"] if processes > 1 else ["-m", "clipfuse"]
    environ = {**os.environ, "CLIPFUSE_CACHE": str(cache), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    command = [sys.executable, *start, *WORDS, "joint=true", "--out", str(out), *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=110)


def test_two_processes_count_what_one_counts(tmp_path: Path):
    folders = {}
    for processes in (1, 2):
        folders[processes] = tmp_path / str(processes)
        done = evaluate(processes, folders[processes], tmp_path / f"cache{processes}", "--json")
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)) == 4, "one process speaks"
    one, two = (read_records(folder / "records.jsonl") for folder in folders.values())
    assert all(a.same_as(b) for a, b in zip(one, two, strict=True))
    assert {r.environment.processes for r in two if r.environment} == {2}
    for path in sorted((folders[1] / "predictions").rglob("*.npz")):
        with np.load(path) as mine, np.load(folders[2] / path.relative_to(folders[1])) as its:
            assert set(mine) == set(its)
            assert all(np.array_equal(mine[name], its[name]) for name in mine)


def test_a_share_of_batches_is_scored_by_exactly_one_process():
    import torch
    from picture_splits import PREPROCESS, make_split

    from clipfuse.data import blocks, open_images

    images = open_images(make_split("x", 2500), PREPROCESS, cached=False)
    whole = list(blocks(images))
    for batch, count in ((64, 2), (50, 3), (1024, 2), (1000, 4)):
        scored = [list(blocks(images, batch, share=(number, count))) for number in range(count)]
        for number, block in enumerate(whole):
            mine = [part for worker in scored for part in worker[number].share]
            rows = sorted(row for part in mine for row in range(part.start, part.stop))
            assert rows == list(range(len(block.labels)))
            for worker in scored:
                parts = [block.pixels[part] for part in worker[number].share]
                assert not parts or torch.equal(worker[number].pixels, torch.cat(parts))
                assert worker[number].digest == block.digest


def test_one_process_needs_no_launcher():
    assert find_workers(environ={}.get) == Workers()
    assert find_workers(environ={"WORLD_SIZE": "1"}.get) == Workers()
    assert Workers().gather("found") == ["found"]
