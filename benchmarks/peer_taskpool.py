"""Runs inside FusionBench's own environment (see peers.py): its task pool on an image folder with DTD's words.

    python peer_taskpool.py '{"models": [...], "base": ..., "images": ...}'

`CLIPVisionModelTaskPool` as its configuration has it (batches of 128; two loader processes for two cores), given the
data set as an object because its configuration names one on the hub. Prints the seconds of `evaluate` over all models,
which come one after the other as its programs do it, and the accuracies.
"""

# pyright: reportMissingImports=false
import json
import sys
import time
from contextlib import redirect_stdout
from typing import Any

from datasets import load_dataset
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, CLIPVisionModel


class Processor:
    """Words to the tokenizer, pictures to the image processor: a CLIPProcessor takes no tokenizer of whole words."""

    def __init__(self, base: str):
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.image_processor = CLIPImageProcessor.from_pretrained(base)

    def __call__(self, image: Any = None, text: Any = None, **settings: Any) -> Any:
        if text is not None:
            return self.tokenizer(text, **settings)
        return self.image_processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"][0]


def main(given: str) -> None:
    job = json.loads(given)
    processor = Processor(job["base"])
    images = load_dataset("imagefolder", data_dir=job["images"], split="train")
    began = time.perf_counter()
    with redirect_stdout(sys.stderr):
        pool = CLIPVisionModelTaskPool(
            {"dtd": images},
            processor=processor,
            clip_model=CLIPModel.from_pretrained(job["base"]),
            dataloader_kwargs={"batch_size": 128, "num_workers": 2, "shuffle": False},
        )
        accuracies = []
        for path in job["models"]:
            report = pool.evaluate(CLIPVisionModel.from_pretrained(path).vision_model)
            accuracies.append(report["dtd"]["accuracy"])
    print(json.dumps({"seconds": time.perf_counter() - began, "accuracies": accuracies}))


if __name__ == "__main__":
    main(sys.argv[1])
