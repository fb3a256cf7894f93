"""Heads, features and logits of models with the real geometries are those of transformers' own CLIPModel."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.checkpoints.geometry import read_geometry
from clipfuse.data import read_preprocess
from clipfuse.heads import zero_shot_heads
from clipfuse.models.build import build_vision_model
from clipfuse.models.clip_base import open_base
from clipfuse.models.encoder import VisionEncoder
from clipfuse.run.tasks import get_task
from tests.random_clip import write_random_clip


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8))
        for w, h in ((640, 480), (32, 32), (90, 300))
    ]


@pytest.mark.parametrize(
    "name", ["ViT-B/32", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ViT-B/16", "ViT-L/14"))]
)
@torch.no_grad()
def test_zero_shot_logits_are_transformers(tmp_path: Path, name: str):
    write_random_clip(tmp_path, name)
    base, tasks = open_base(str(tmp_path)), [get_task("tiny-signs"), get_task("mnist")]
    heads = zero_shot_heads(base, tasks)
    encoder = VisionEncoder(build_vision_model(open_checkpoint(tmp_path, ""), read_geometry(tmp_path)), base)
    preprocess = read_preprocess(tmp_path)
    pixels = preprocess.normalise(torch.stack([preprocess.pixels(image) for image in pictures()]))
    features = encoder.features(pixels, None)
    ours = {task.name: heads[task.name].logits(encoder, features) for task in tasks}
    del encoder, features
    gc.collect()

    model = CLIPModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(tmp_path), CLIPImageProcessorPil.from_pretrained(tmp_path)
    inputs = processor(pictures(), return_tensors="pt")
    for task in tasks:
        rows = []
        for row in task.prompts():  # one forward for each class, its templates padded to one length
            ids = tokenizer(row, padding=True, return_tensors="pt")
            rows.append(model(**ids, **inputs).text_embeds.mean(0))
        text = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
        ids = tokenizer(["a"], return_tensors="pt")
        theirs = model.logit_scale.exp() * model(**ids, **inputs).image_embeds @ text.T
        scale = float(theirs.abs().max())
        assert float((ours[task.name] - theirs).abs().max()) <= 1e-5 * scale
        torch.testing.assert_close(heads[task.name].weights, text, rtol=1e-5, atol=1e-6)
