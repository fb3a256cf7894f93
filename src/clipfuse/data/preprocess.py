"""CLIP's preprocessing with Pillow: shortest side bicubic, centre crop; normalised later, on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from clipfuse.checkpoints.json_file import read_json
from clipfuse.errors import ModelError
from clipfuse.shapes import Float, UInt8

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3


@dataclass(frozen=True)
class Preprocess:
    """Sizes in pixels, mean and standard deviation per channel of values in [0, 1]."""

    size: int = 224
    crop: int = 224
    mean: Sequence[float] = OPENAI_MEAN
    std: Sequence[float] = OPENAI_STD

    def pixels(self, image: Image.Image) -> UInt8[Tensor, "3 crop crop"]:
        """Resize the shortest side to `size` (bicubic) and cut the centre, as transformers' Pillow processor does."""
        image = image.convert("RGB")
        width, height = image.size
        short, long = min(width, height), max(width, height)
        if short != self.size:
            scaled = int(self.size * long / short)
            wanted = (self.size, scaled) if width <= height else (scaled, self.size)
            image = image.resize(wanted, Image.Resampling.BICUBIC)
        left, top = (image.width - self.crop) // 2, (image.height - self.crop) // 2
        return planes(image.crop((left, top, left + self.crop, top + self.crop)))

    def small(self, image: Image.Image) -> bool:
        """Whether an image is smaller as it is than preprocessed, so that resizing it can wait until it is needed."""
        return min(image.size) < self.size and image.width * image.height <= self.crop**2

    @property
    def key(self) -> str:
        """What pixels depend on, Pillow's version too; mean and standard deviation come later, on the device."""
        return f"bicubic {self.size} crop {self.crop} Pillow {PIL.__version__}"

    def normalise(self, pixels: UInt8[Tensor, "batch 3 crop crop"]) -> Float[Tensor, "batch 3 crop crop"]:
        """(x / 255 − mean) / std, float32."""
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return pixels.float().mul_(1 / 255).sub_(mean).div_(std)


def planes(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """An RGB image's pixels, a copy."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def picture(pixels: UInt8[Tensor, "3 height width"]) -> Image.Image:
    """The image of `planes`."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def read_preprocess(folder: Path) -> Preprocess:
    """From a folder's `preprocessor_config.json`; OpenAI's values where the file is silent.

    Raises:
        ModelError: no such file, or a preprocessing that is not CLIP's (another filter, no crop, no scaling).
    """
    path = folder / "preprocessor_config.json"
    try:
        tree: dict[str, Any] = read_json(path)
        size, crop = tree.get("size", 224), tree.get("crop_size", 224)
    except (OSError, ValueError, AttributeError, RecursionError):
        raise ModelError(
            f"{path}: no such file, or not JSON; a CLIP folder says there how images are prepared"
        ) from None
    size = size.get("shortest_edge") if isinstance(size, dict) else size
    crop = crop.get("height") if isinstance(crop, dict) else crop
    steps = [tree.get(key, True) for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize")]
    if not (isinstance(size, int) and isinstance(crop, int) and 0 < crop <= size):
        raise ModelError(f"{path}: takes a size of the shortest side and a crop that is not larger, in pixels")
    if tree.get("resample", BICUBIC) != BICUBIC or not all(steps):
        raise ModelError(f"{path}: is not CLIP's preprocessing (shortest side bicubic, centre crop, normalise)")
    return Preprocess(size, crop, tree.get("image_mean", OPENAI_MEAN), tree.get("image_std", OPENAI_STD))
