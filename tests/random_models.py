"""Random models of a small geometry, as state dicts and as transformers' modules."""

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from clipfuse.checkpoints.geometry import Geometry
from clipfuse.testing import SMALL, TASKS, random_models

__all__ = ["SMALL", "TASKS", "random_models", "vision_model"]


def vision_model(seed: int, geometry: Geometry = SMALL) -> CLIPVisionModel:
    torch.manual_seed(seed)
    return CLIPVisionModel(CLIPVisionConfig(**geometry.model_dump())).eval()
