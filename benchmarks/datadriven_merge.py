"""One merge by a method that looks at data, from disk to disk, as a process of its own: its memory is measured.

    python datadriven_merge.py '{"pool": ..., "method": {...}, "images": ...}'

Prints a line of JSON: the seconds of the merge, without imports, and of each step.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from datadriven_lender import noise_lender

from clipfuse.cli.allocator import give_back_large_blocks
from clipfuse.fusion.merge import merge
from clipfuse.pool import HuggingFaceClipVisionPool


def main(given: str) -> None:
    job = json.loads(given)
    give_back_large_blocks()
    pool = HuggingFaceClipVisionPool.from_yaml(job["pool"])
    geometry = pool.weights.geometry
    assert geometry is not None
    with noise_lender(geometry, job["images"]) as lender, tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        merge(pool, job["method"], data=lender, out=Path(folder) / "merged")
        print(json.dumps({"seconds": time.perf_counter() - began, "steps": lender.clock.seconds}))


if __name__ == "__main__":
    main(sys.argv[1])
