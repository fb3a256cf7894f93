"""Runs inside FusionBench's own environment (see peers.py): its methods that look at data, on noise.

    python peer_datadriven.py '{"method": "adamerging", "models": {...}, "images": ..., "steps": ...}'

Its classes `CLIPLayerWiseAdaMergingAlgorithm`, `RegMeanAlgorithmForCLIP` and `FisherMergingForCLIPVisionModel`, with
the settings of its own configuration files, on its `CLIPVisionModelPool`. Only what is tied to the hub is given to
them: data sets (normalised tensors, so that its image processor has nothing to do), heads, projection, logit_scale.
Images are loaded in the process: workers would take the cores that it computes on.

Prints a line of JSON: the seconds of the merge, models loaded by it, or of each of AdaMerging's steps.
"""

# pyright: reportMissingImports=false
import json
import sys
import time
from contextlib import redirect_stdout
from itertools import pairwise
from typing import Any

import torch
from fusion_bench.method import FisherMergingForCLIPVisionModel, RegMeanAlgorithmForCLIP
from fusion_bench.method.adamerging.clip_layer_wise_adamerging import CLIPLayerWiseAdaMergingAlgorithm
from fusion_bench.modelpool.clip_vision.modelpool import CLIPVisionModelPool
from omegaconf import DictConfig
from torch.nn.functional import normalize
from transformers import CLIPVisionConfig

CLASSES, SCALE, BATCH = 100, 100.0, 32


def clip_pool(models: dict[str, str], images: int) -> CLIPVisionModelPool:
    """Its pool, with noise as every task's data set."""
    pool = CLIPVisionModelPool(models)
    side: Any = CLIPVisionConfig.from_pretrained(models["_pretrained_"]).image_size
    noise = torch.randn(images, 3, side, side)
    data = [(image, number % CLASSES) for number, image in enumerate(noise)]
    pool.load_train_dataset = pool.load_test_dataset = lambda name: data
    return pool


def prepare(algorithm: Any, pool: CLIPVisionModelPool, models: dict[str, str]) -> None:
    """What it would take from a CLIP on the hub."""
    config = CLIPVisionConfig.from_pretrained(models["_pretrained_"])
    width, embed = config.hidden_size, config.projection_dim
    algorithm.modelpool, algorithm._clip_processor = pool, lambda image: image
    algorithm.zeroshot_weights = {name: normalize(torch.randn(CLASSES, embed), dim=-1) for name in pool.model_names}
    algorithm.visual_projection = torch.nn.Linear(width, embed, bias=False).requires_grad_(False)
    algorithm.logit_scale_exp = torch.tensor(SCALE)
    algorithm.setup_zero_shot_classification_head = lambda: None


def adamerging(pool: CLIPVisionModelPool, job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of `steps` steps of its test_time_adaptation after a first one, from log to log."""
    config = DictConfig(
        {
            **{"weights": None, "optimizer": "adam", "lr": 1e-3, "init_values": 0.3, "clamp_weights": False},
            **{"tie_weights": True, "strict": False, "batch_size": job["batch"], "num_workers": 0},
            "max_steps": job["steps"] + 1,
        }
    )
    algorithm, ends = CLIPLayerWiseAdaMergingAlgorithm(config), []
    prepare(algorithm, pool, job["models"])
    algorithm.fabric.log_dict = lambda metrics, step: ends.append(time.perf_counter())
    algorithm.test_time_adaptation(algorithm.construct_layer_wise_merged_model(pool))
    return {"steps": [end - began for began, end in pairwise(ends)]}


def whole(algorithm: Any, pool: CLIPVisionModelPool, job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of its run."""
    prepare(algorithm, pool, job["models"])
    began = time.perf_counter()
    algorithm.run(pool)
    return {"seconds": time.perf_counter() - began}


def main(given: str) -> None:
    job = json.loads(given)
    torch.manual_seed(0)
    pool = clip_pool(job["models"], job["images"])
    loading = DictConfig({"batch_size": BATCH, "num_workers": 0})
    with redirect_stdout(sys.stderr):
        if job["method"] == "adamerging":
            told = adamerging(pool, job)
        elif job["method"] == "regmean":
            regmean = RegMeanAlgorithmForCLIP(
                num_regmean_examples=job["images"],
                exclude_param_names_regex=[],
                reduce_non_diagonal_ratio=0.95,
                weight_transpose=True,
                dataloader_kwargs=loading,
            )
            told = whole(regmean, pool, job)
        else:
            fisher = FisherMergingForCLIPVisionModel(
                exclude_param_names_regex=[],
                normalize_fisher_weight=True,
                minimal_fisher_weight=1e-6,
                num_fisher_examples=job["images"],
                dataloader_kwargs=loading,
            )
            told = whole(fisher, pool, job)
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
