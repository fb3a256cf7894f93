"""Random models of a small geometry."""

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from clipfuse.checkpoints.geometry import Geometry

SMALL = Geometry(
    hidden_size=64, intermediate_size=1100, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
)
"""Its MLP weights have 70,400 elements: more than one slice of 65,536."""
TASKS = ("digits", "signs", "roads")


def vision_model(seed: int, geometry: Geometry = SMALL) -> CLIPVisionModel:
    torch.manual_seed(seed)
    return CLIPVisionModel(CLIPVisionConfig(**geometry.model_dump())).eval()


def random_models(correlation: float = 0.0, spread: float = 0.01) -> dict[str, dict[str, Tensor]]:
    """State dicts of a base and experts whose task vectors have about that cosine."""
    base = {name: tensor.clone() for name, tensor in vision_model(0).state_dict().items()}
    generator = torch.Generator().manual_seed(1)

    def noise() -> dict[str, Tensor]:
        return {n: torch.randn(t.shape, generator=generator) * spread for n, t in base.items()}

    common = noise()
    experts = {}
    for task in TASKS:
        own = noise()
        mix = correlation**0.5, (1 - correlation) ** 0.5
        experts[task] = {n: base[n] + mix[0] * common[n] + mix[1] * own[n] for n in base}
    return {"_pretrained_": base, **experts}
