"""The shape of a vision tower, from `config.json` (of a CLIPVisionModel or a full CLIPModel), without transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from clipfuse.errors import CheckpointError


class Geometry(BaseModel):
    """What fixes a CLIP vision tower's parameters and its forward pass; defaults are transformers' (ViT-B/32)."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    hidden_size: PositiveInt = 768
    """Width of a token, features."""
    intermediate_size: PositiveInt = 3072
    """Width of the MLPs, features."""
    num_hidden_layers: PositiveInt = 12
    """Transformer blocks."""
    num_attention_heads: PositiveInt = 12
    """Heads of an attention."""
    num_channels: PositiveInt = 3
    """Colour channels of an image."""
    image_size: PositiveInt = 224
    """Side of an image, pixels."""
    patch_size: PositiveInt = 32
    """Side of a patch, pixels."""
    hidden_act: str = "quick_gelu"
    """Activation of the MLPs; OpenAI's weights need quick_gelu."""
    layer_norm_eps: float = 1e-5
    """Added to the variance in LayerNorms."""
    projection_dim: PositiveInt = 512
    """Width of the space shared with text, features."""

    def __str__(self) -> str:
        return (
            f"{self.num_hidden_layers} layers × {self.hidden_size}, {self.num_attention_heads} heads, "
            f"patch {self.patch_size}, {self.image_size} px, {self.hidden_act}"
        )

    def to_config(self) -> dict[str, Any]:
        """The `config.json` of a CLIPVisionModel with this geometry."""
        return {
            "architectures": ["CLIPVisionModel"],
            "model_type": "clip_vision_model",
            "attention_dropout": 0.0,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            **self.model_dump(),
        }


def parameter_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of a vision tower, by canonical name."""
    width, hidden = geometry.hidden_size, geometry.intermediate_size
    tokens = (geometry.image_size // geometry.patch_size) ** 2 + 1
    found: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, geometry.num_channels, *[geometry.patch_size] * 2),
        "embeddings.position_embedding.weight": (tokens, width),
    }
    for layer in range(geometry.num_hidden_layers):
        linear = {f"self_attn.{part}_proj": (width, width) for part in "qkv"} | {
            "self_attn.out_proj": (width, width),
            "mlp.fc1": (hidden, width),
            "mlp.fc2": (width, hidden),
        }
        for name, shape in linear.items():
            found[f"encoder.layers.{layer}.{name}.weight"] = shape
            found[f"encoder.layers.{layer}.{name}.bias"] = shape[:1]
    norms = [f"encoder.layers.{layer}.layer_norm{n}" for layer in range(geometry.num_hidden_layers) for n in (1, 2)]
    for norm in ("pre_layrnorm", *norms, "post_layernorm"):
        found |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return found


def misfit(geometry: Geometry, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What in a geometry contradicts the shapes of a checkpoint's tensors (by canonical name); None if nothing does."""
    layers = {name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}
    if len(layers) != geometry.num_hidden_layers:
        return f"it has {len(layers)} layers, config.json says {geometry.num_hidden_layers}"
    for name, shape in parameter_shapes(geometry).items():
        if name in shapes and shapes[name] != shape:
            return f"{name} is {shapes[name]}, config.json says {shape}"
    return None


def read_geometry(folder: Path) -> Geometry:
    """The geometry in a folder's `config.json`.

    Raises:
        CheckpointError: no such file, not JSON, or not the configuration of a CLIP model.
    """
    path = (folder if folder.is_dir() else folder.parent) / "config.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        vision = tree.get("vision_config", tree)
        if "clip" not in str(tree.get("model_type", "clip")):
            raise CheckpointError(f"{path}: is the configuration of a {tree['model_type']!r} model, not of a CLIP")
        return Geometry.model_validate({"projection_dim": tree.get("projection_dim", 512), **vision})
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a Hugging Face model folder has one") from None
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        raise CheckpointError(f"{path}: {'.'.join(map(str, found['loc']))}: {found['msg'].lower()}") from None
    except (ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path}: is not a model's configuration ({error})") from None
