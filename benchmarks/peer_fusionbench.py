"""Runs inside FusionBench's own environment (see peers.py): its algorithm classes on its pool, from disk to disk.

    python peer_fusionbench.py METHOD POOL.yaml OUT

FusionBench's command line resolves the whole tree of its groups and is tied to the hub, so its own classes are called:
`CLIPVisionModelPool` (which loads each model through transformers when the algorithm asks for it),
`TaskArithmeticAlgorithm` or `TiesMergingAlgorithm`, and `save_pretrained`. Prints JSON with the seconds after imports.
"""

# pyright: reportMissingImports=false
import json
import sys
import time

import yaml
from fusion_bench.method.task_arithmetic import TaskArithmeticAlgorithm
from fusion_bench.method.ties_merging.ties_merging import TiesMergingAlgorithm
from fusion_bench.modelpool.clip_vision.modelpool import CLIPVisionModelPool


def main(method: str, pool_file: str, out: str) -> None:
    with open(pool_file, encoding="utf-8") as file:
        models = {model["name"]: model["path"] for model in yaml.safe_load(file)["models"]}
    if method == "task_arithmetic":
        algorithm = TaskArithmeticAlgorithm(scaling_factor=0.3)
    elif method == "ties_merging":
        algorithm = TiesMergingAlgorithm(scaling_factor=0.3, threshold=20, remove_keys=[], merge_func="sum")
    else:
        sys.exit(f"{method}: not compared")
    began = time.perf_counter()
    merged = algorithm.run(CLIPVisionModelPool(models))
    merged.save_pretrained(out)
    print(json.dumps({"seconds": round(time.perf_counter() - began, 3)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
