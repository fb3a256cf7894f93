"""Kept decompositions across processes."""

import subprocess
import sys
from pathlib import Path

import torch

from clipfuse.stats.factor_cache import keep_factors
from clipfuse.stats.spectra import leading

SCRIPT = """
import sys
from pathlib import Path
import torch
from clipfuse.stats.factor_cache import keep_factors
from clipfuse.stats.spectra import leading
torch.set_num_threads(1)
with keep_factors(Path(sys.argv[1]), memory=0) as store:
    for seed in range(20):
        leading(torch.randn(60, 40, generator=torch.Generator().manual_seed(seed)), 5)
print(store.made + store.reused)
"""


def test_two_processes_share_a_folder(tmp_path: Path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["20", "20"]
    assert len(list(tmp_path.iterdir())) == 20, "no temporary files are left"
    before, matrix = torch.get_num_threads(), torch.randn(60, 40, generator=torch.Generator().manual_seed(7))
    torch.set_num_threads(1)
    try:
        with keep_factors(tmp_path) as store:
            found = leading(matrix, 5)
        want = leading(matrix, 5)
    finally:
        torch.set_num_threads(before)
    assert (store.made, store.reused) == (0, 1)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
