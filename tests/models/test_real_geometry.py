"""Heads, features and logits of models with the real geometries are those of transformers' own CLIPModel."""

import gc
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.checkpoints.geometry import read_geometry
from clipfuse.checkpoints.locate import local_path
from clipfuse.data import read_preprocess
from clipfuse.heads import zero_shot_heads
from clipfuse.models.base import open_base
from clipfuse.models.build import build_vision_model
from clipfuse.models.encoder import VisionEncoder
from clipfuse.run.tasks import get_task

TINY = local_path("pkg://clipfuse/tiny/weights/base")
WORDS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
VISION = {
    "ViT-B/32": {"patch_size": 32},
    "ViT-B/16": {"patch_size": 16},
    "ViT-L/14": {
        "patch_size": 14,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
}
TEXT = {"ViT-L/14": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}}


def write_random_clip(folder: Path, name: str) -> None:
    """A CLIP with OpenAI's shapes and random weights; words by the tiny suite's tokenizer, OpenAI's preprocessing."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    dim = 768 if name in TEXT else 512
    config = CLIPConfig(
        text_config={**TEXT.get(name, {}), **ids, "projection_dim": dim},
        vision_config={**VISION[name], "projection_dim": dim},
        projection_dim=dim,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    for file in WORDS:
        if (TINY / file).is_file():
            shutil.copy(TINY / file, folder)


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
