"""The shape of a vision tower, from `config.json` (of a CLIPVisionModel or a full CLIPModel), without transformers."""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from clipfuse.checkpoints.checkpoint import Checkpoint
from clipfuse.checkpoints.json_file import read_json
from clipfuse.checkpoints.names import PROJECTION
from clipfuse.errors import CheckpointError

Count = Annotated[int, Field(gt=0, le=100_000)]
"""No tower has more of anything; without a limit a short file could ask for any amount of memory."""


class Geometry(BaseModel):
    """What fixes a CLIP vision tower's parameters and its forward pass; defaults are transformers' (ViT-B/32)."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    hidden_size: Count = 768
    """Width of a token, features."""
    intermediate_size: Count = 3072
    """Width of the MLPs, features."""
    num_hidden_layers: Count = 12
    """Transformer blocks."""
    num_attention_heads: Count = 12
    """Heads of an attention."""
    num_channels: Count = 3
    """Colour channels of an image."""
    image_size: Count = 224
    """Side of an image, pixels."""
    patch_size: Count = 32
    """Side of a patch, pixels."""
    hidden_act: str = "quick_gelu"
    """Activation of the MLPs; OpenAI's weights need quick_gelu."""
    layer_norm_eps: Annotated[float, Field(ge=0, lt=1)] = 1e-5
    """Added to the variance in LayerNorms."""
    projection_dim: Count = 512
    """Width of the space shared with text, features."""
    linearised: bool = False
    """Whether features are the first-order expansion around the base's weights."""

    def __str__(self) -> str:
        kind = ", linearised" if self.linearised else ""
        return (
            f"{self.num_hidden_layers} layers × {self.hidden_size}, {self.num_attention_heads} heads, "
            f"patch {self.patch_size}, {self.image_size} px, {self.hidden_act}{kind}"
        )

    @model_serializer(mode="wrap")
    def without_what_is_rare(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`linearised` only where it is so: it is no key of transformers."""
        return {key: value for key, value in handler(self).items() if value or key != "linearised"}

    def to_config(self, with_projection: bool = False) -> dict[str, Any]:
        """The `config.json` of a CLIPVisionModel with this geometry, or of one with a projection."""
        return {
            "architectures": ["CLIPVisionModelWithProjection" if with_projection else "CLIPVisionModel"],
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


HEADS = {1280: 16, 1408: 16, 1664: 16}
"""Width → heads of OpenCLIP's ViT-H, g and G, which have more than 64 features a head."""


def find_geometry(at: Path, checkpoint: Checkpoint) -> Geometry:
    """The geometry of a model in a folder or file: of its `config.json`, else OpenCLIP's, else from the shapes.

    Raises:
        CheckpointError: a configuration that is none of a CLIP, or shapes that are none of a vision tower.
    """
    folder = at if at.is_dir() else at.parent
    if (folder / "config.json").is_file():
        found = read_geometry(folder)
    else:
        found = geometry_of_shapes(checkpoint, read_openclip(folder / "open_clip_config.json"))
    if lacking := sorted(parameter_shapes(found).keys() - checkpoint.keys()):
        raise CheckpointError(f"{checkpoint.source}: is no whole vision tower: it lacks {lacking[0]}")
    return found


def read_openclip(path: Path) -> dict[str, Any]:
    """What OpenCLIP's configuration says that shapes do not: heads and activation."""
    if not path.is_file():
        return {}
    try:
        model = read_json(path)["model_cfg"]
        vision = model["vision_cfg"]
        return {
            "num_attention_heads": int(vision["width"]) // int(vision.get("head_width", 64)),
            "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
        }
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path}: is not the configuration of an OpenCLIP ViT ({error})") from None


def geometry_of_shapes(checkpoint: Checkpoint, told: Mapping[str, Any]) -> Geometry:
    """The geometry that a whole tower's shapes give; heads and activation as `told`, else as the file hints, else 16
    heads or 64 features a head, as published ViTs of that width have, and the QuickGELU of OpenAI's weights.
    """
    shapes = {name: checkpoint.spec(name).shape for name in checkpoint}
    try:
        width, channels, patch, _ = shapes["embeddings.patch_embedding.weight"]
        grid = isqrt(shapes["embeddings.position_embedding.weight"][0] - 1)
        projection = checkpoint.with_projection()
        facts: dict[str, Any] = {
            "hidden_size": width,
            "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
            "num_hidden_layers": len({name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}),
            "num_attention_heads": HEADS.get(width) or max(1, width // 64),
            "num_channels": channels,
            "patch_size": patch,
            "image_size": grid * patch,
            **({"projection_dim": projection.spec(PROJECTION).shape[0]} if PROJECTION in projection else {}),
        }
        found = Geometry.model_validate({**facts, **checkpoint.hints, **told})
    except (KeyError, ValueError, IndexError):
        raise CheckpointError(f"{checkpoint.source}: has no config.json, and its shapes are none of a ViT") from None
    if wrong := misfit(found, shapes) or misfit_of_heads(found):
        raise CheckpointError(f"{checkpoint.source}: has no config.json, and its shapes are none of a ViT: {wrong}")
    return found


def misfit_of_heads(geometry: Geometry) -> str | None:
    width, heads = geometry.hidden_size, geometry.num_attention_heads
    return f"{width} features do not divide into {heads} heads" if width % heads else None


def is_linearised(at: Path) -> bool:
    """Whether the config.json of a folder, or beside a file, says that it is of a linearised model; raises as below."""
    return ((at if at.is_dir() else at.parent) / "config.json").is_file() and read_geometry(at).linearised


def read_geometry(folder: Path) -> Geometry:
    """The geometry in a folder's `config.json`.

    Raises:
        CheckpointError: no such file, not JSON, or not the configuration of a CLIP model.
    """
    path = (folder if folder.is_dir() else folder.parent) / "config.json"
    try:
        tree = read_json(path)
        vision = tree.get("vision_config", tree)
        if "clip" not in str(tree.get("model_type", "clip")):
            raise CheckpointError(f"{path}: is the configuration of a {tree['model_type']!r:.60} model, not of a CLIP")
        return Geometry.model_validate({"projection_dim": tree.get("projection_dim", 512), **vision})
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a Hugging Face model folder has one") from None
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        raise CheckpointError(f"{path}: {'.'.join(map(str, found['loc']))}: {found['msg'].lower()}") from None
    except (ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path}: is not a model's configuration ({error})") from None
