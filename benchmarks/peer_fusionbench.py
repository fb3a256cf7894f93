"""Runs inside FusionBench's own environment (see peers.py): its algorithm classes on its pool, from disk to disk.

    python peer_fusionbench.py JOBS        # a JSON list of {name, theirs, arguments, pool, out}, or a file of one

FusionBench's command line resolves the whole tree of its groups and is tied to the hub, so its own classes are called:
`CLIPVisionModelPool` (which loads each model through transformers when the algorithm asks for it), an algorithm, and
`save_pretrained`. Prints a line of JSON for each job: the seconds after imports, or the error. Status 1 if one failed.
"""

# pyright: reportMissingImports=false
import importlib
import json
import re
import sys
import time
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from fusion_bench.modelpool.clip_vision.modelpool import CLIPVisionModelPool


def consensus(pool: CLIPVisionModelPool, t: float, k: int, scaling_factor: float) -> Any:
    """Their masks (tall_mask/utils.py) counted: they ship no algorithm, and construct_consensus_mask reads a config."""
    from fusion_bench.method.tall_mask.utils import generate_task_masks
    from fusion_bench.utils import state_dict_to_vector, vector_to_state_dict

    model = pool.load_pretrained_model()
    base = state_dict_to_vector(model.state_dict())
    experts = torch.stack([state_dict_to_vector(pool.load_model(name).state_dict()) for name in pool.model_names])
    total = (experts - base).sum(0)
    kept = generate_task_masks(experts - base, experts, base, total, t).float().sum(0) >= k
    model.load_state_dict(vector_to_state_dict(base + scaling_factor * total * kept, model.state_dict()))
    return model


def linear_interpolation(pool: CLIPVisionModelPool, t: float) -> Any:
    """The body of their algorithm, whose assertion compares a list with 2 (linear_interpolation.py:49-51)."""
    from fusion_bench.utils.state_dict_arithmetic import state_dict_weighted_sum

    first, second = (pool.load_model(name) for name in pool.all_model_names)
    first.load_state_dict(state_dict_weighted_sum([first.state_dict(), second.state_dict()], [1 - t, t]))
    return first


def merged(job: dict[str, Any]) -> Any:
    """Their merged model of one job."""
    with open(job["pool"], encoding="utf-8") as file:
        pool = CLIPVisionModelPool({model["name"]: model["path"] for model in yaml.safe_load(file)["models"]})
    module, _, name = job["theirs"].rpartition(":")
    if not module:
        with torch.no_grad():
            return globals()[name](pool, **job["arguments"])
    algorithm = getattr(importlib.import_module(module), name)(**job["arguments"])
    # The continual algorithms look at the task pool even where nothing is evaluated.
    algorithm._program = SimpleNamespace(taskpool=SimpleNamespace(_test_datasets={}))
    torch.manual_seed(0)
    return algorithm.run(pool)


def one_line(error: BaseException) -> str:
    """`AssertionError: text (method/linear/x.py:49)`: what was raised, and where in their package."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if "fusion_bench" in frame.filename]
    where = f" ({re.sub('.*fusion_bench/', '', places[-1].filename)}:{places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{where}"


def main(given: str) -> None:
    jobs = json.loads(given if given.startswith("[") else Path(given).read_text(encoding="utf-8"))
    failed = 0
    for job in jobs:
        began = time.perf_counter()
        told: dict[str, Any] = {}
        try:
            with redirect_stdout(sys.stderr):
                merged(job).save_pretrained(job["out"])
        except Exception as error:  # whatever their code raises is a finding, and the next job must run
            traceback.print_exc()
            told = {"error": one_line(error)}
            failed += 1
        seconds = round(time.perf_counter() - began, 3)
        print(json.dumps({"seconds": seconds, "name": job["name"], **told}), flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(sys.argv[1])
