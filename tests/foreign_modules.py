"""Whole pickled modules as the task-arithmetic authors published them, of classes that are not installed."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

SOURCES = {
    "open_clip": "",
    "open_clip.model": """
import torch
from collections import OrderedDict
from functools import partial
from torch import nn
class LayerNorm(nn.LayerNorm): pass
class QuickGELU(nn.Module): pass
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)
        self.ln_1 = LayerNorm(8)
        self.mlp = nn.Sequential(OrderedDict(c_fc=nn.Linear(8, 16), gelu=QuickGELU(), c_proj=nn.Linear(16, 8)))
class VisualTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_size, self.norm, self.relu = (8, 8), partial(nn.LayerNorm, eps=1e-6), nn.functional.relu
        self.conv1 = nn.Conv2d(3, 8, 4, 4, bias=False)
        self.proj = nn.Parameter(torch.randn(8, 4))
        self.resblocks = nn.ModuleList([Block(), Block()])
class CLIP(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = VisualTransformer()
        self.logit_scale = nn.Parameter(torch.ones([]))
        self.register_buffer("attn_mask", torch.zeros(3, 3), persistent=False)
        self.register_buffer("seen", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("nothing", None)
        self.register_module("absent", None)
        self.transformer = nn.Identity()
""",
    "open_clip.transform": """
import enum
class Mode(enum.Enum):
    BICUBIC = "bicubic"
class Compose:
    def __init__(self, *steps): self.steps = list(steps)
class color_jitter:
    def __init__(self): self.mode, self.strength = Mode.BICUBIC, 0.5
def _convert_to_rgb(image): return image.convert("RGB")
""",
    "src": "",
    "src.modeling": """
import torch
from open_clip import model, transform
class ImageEncoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model.CLIP()
        self.train_preprocess = transform.Compose(transform.color_jitter(), transform._convert_to_rgb)
        self.val_preprocess = transform.Compose(transform._convert_to_rgb)
        self.cache_dir = "/data/cache"
        self.model.transformer = None
class ClassificationHead(torch.nn.Linear):
    def __init__(self):
        super().__init__(8, 5)
        self.normalize = True
""",
}


def save_foreign(
    monkeypatch: pytest.MonkeyPatch, path: Path, kind: str, parallel: bool = False, **options: Any
) -> dict[str, Tensor]:
    """A module of the task-arithmetic authors' as a file; its state dict. Their classes are gone afterwards."""
    with monkeypatch.context() as patch:
        for name, source in SOURCES.items():
            made = types.ModuleType(name)
            patch.setitem(sys.modules, name, made)
            if "." in name:
                setattr(sys.modules[name.split(".")[0]], name.split(".")[1], made)
            exec(source, made.__dict__)
        module = getattr(sys.modules["src.modeling"], kind)()
        module = nn.DataParallel(module) if parallel else module
        torch.save(module, path, **options)
    return module.state_dict()
