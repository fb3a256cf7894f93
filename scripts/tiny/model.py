"""The small CLIP: its size, and how pictures and sentences become features."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from clipfuse.tiny.canvas import SIDE
from clipfuse.tiny.task import TinyTask

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
WIDTH, PROJECTED = 128, 128
LOGIT_SCALE = 50.0
"""Fixed, and high as CLIP's 100 is: a small move of the features changes the logits much."""

POSITIONS = 32
"""Longest text, in tokens."""


def small_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP with fresh weights: 0.82 M parameters that see, 0.8 M that read."""
    shared = {"hidden_act": "quick_gelu", "projection_dim": PROJECTED}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        # The text encoder takes its feature where this token first stands.
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": WIDTH // 32,
        "image_size": SIDE,
        "patch_size": 8,
    }
    clip = CLIPModel(CLIPConfig(text_config=text | shared, vision_config=vision | shared, projection_dim=PROJECTED))
    clip.logit_scale.data.fill_(math.log(LOGIT_SCALE))
    return clip


def as_pixels(pictures: Tensor) -> Tensor:
    """Pictures (n, 32, 32, 3) uint8 as the model's input (n, 3, 32, 32), float32."""
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (PIXEL_MEAN, PIXEL_STD))
    return (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / std


def image_features(clip: CLIPModel, pixels: Tensor) -> Tensor:
    """Pixels (n, 3, 32, 32) to unit vectors (n, 128)."""
    return functional.normalize(clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output), dim=-1)


def text_features(clip: CLIPModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Token ids and attention mask (n, length) to unit vectors (n, 128)."""
    return functional.normalize(
        clip.text_projection(clip.text_model(input_ids=ids, attention_mask=mask).pooler_output), dim=-1
    )


@torch.no_grad()
def zero_shot_head(clip: CLIPModel, tokenizer: CLIPTokenizer, task: TinyTask) -> Tensor:
    """The task's classes as unit vectors (classes, 128): each the mean over the templates."""
    rows = []
    for template in task.templates:
        tokens = tokenizer([template.format(c=name) for name in task.classes], padding=True, return_tensors="pt")
        rows.append(text_features(clip, tokens.input_ids, tokens.attention_mask))
    return functional.normalize(torch.stack(rows).mean(0), dim=-1)


def split_tensors(task: TinyTask, split: str) -> tuple[Tensor, Tensor]:
    """All of a split: pictures (n, 32, 32, 3) uint8 and labels (n,)."""
    labels, pictures = zip(*task.examples(split), strict=True)
    return torch.from_numpy(np.stack(pictures)), torch.tensor(labels)


@torch.no_grad()
def correct(clip: CLIPModel, head: Tensor, pictures: Tensor, labels: Tensor) -> int:
    """How many of the pictures the zero-shot head puts into their class."""
    clip.eval()
    blocks = zip(pictures.split(512), labels.split(512), strict=True)
    return sum(int(((image_features(clip, as_pixels(x)) @ head.T).argmax(1) == y).sum()) for x, y in blocks)
