"""transformers' CLIP models from canonical weights, and back to folders that every transformers can load."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipfuse.checkpoints.geometry import Geometry
from clipfuse.checkpoints.json_file import read_json
from clipfuse.checkpoints.names import PROJECTION, canonical_names, hub_name
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter, new_folder, write_text
from clipfuse.errors import ModelError

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTextModelWithProjection, CLIPVisionModel


def build_vision_model(
    weights: Mapping[str, Tensor], geometry: Geometry, dtype: torch.dtype | None = None
) -> "CLIPVisionModel":
    """A `CLIPVisionModel` with a copy of `weights` (by canonical name), in eval mode; float32 unless `dtype` is given.

    A projection among the weights is no part of it.

    Raises:
        ModelError: weights and geometry do not fit, or a linearised model, which is none.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if geometry.linearised:
        raise ModelError(
            f"{getattr(weights, 'source', 'the model')}: is linearised, a CLIPVisionModel has another forward pass; "
            "clipfuse evaluate, and .encoder() of a merge, have the right one"
        )

    config = CLIPVisionConfig(**geometry.model_dump())
    try:
        with torch.device("meta"):
            model = CLIPVisionModel(config)
    except (KeyError, ValueError) as error:
        raise ModelError(f"transformers cannot build a vision tower of {geometry}: {error}") from None
    empty = model.state_dict()
    names = canonical_names(empty, "CLIPVisionModel")
    if odd := sorted(names.keys() ^ (weights.keys() - {PROJECTION})):
        raise ModelError(f"weights and config.json do not fit: {odd[0]!r} is in one of them only ({geometry})")
    for name, stored in names.items():
        if (found := tuple(weights[name].shape)) != (wanted := tuple(empty[stored].shape)):
            raise ModelError(f"weights and config.json do not fit: {name} is {found}, the geometry says {wanted}")
    values = {stored: weights[name].to(dtype or torch.float32, copy=True) for name, stored in names.items()}
    model.load_state_dict(values, assign=True)
    count = (geometry.image_size // geometry.patch_size) ** 2 + 1
    for module in model.modules():  # counted, not stored: the one buffer of a CLIP tower
        if "position_ids" in module._buffers:
            module._buffers["position_ids"] = torch.arange(count).expand(1, -1)
    return model.eval()


def is_full_clip(folder: Path) -> bool:
    """Whether a folder's config.json is that of a CLIPModel, with a text encoder."""
    try:
        return read_json(folder / "config.json")["model_type"] == "clip"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def load_clip_model(folder: Path) -> "CLIPModel":
    """The full `CLIPModel` of a folder, float32, in eval mode. Raises ModelError: no full or no whole CLIP."""
    from transformers import CLIPModel

    return load_whole(CLIPModel, folder)


def load_text_model(folder: Path) -> "CLIPTextModelWithProjection":
    """The text tower of a full CLIP's folder, float32, in eval mode. Raises ModelError: no full or no whole CLIP."""
    from transformers import CLIPTextModelWithProjection

    return load_whole(CLIPTextModelWithProjection, folder)


def load_whole(kind: Any, folder: Path) -> Any:
    """A transformers class from the folder of a full CLIP, with every one of its parameters found there."""
    if not is_full_clip(folder):
        raise ModelError(f"{folder}: is not a full CLIP model; a base needs its text encoder too")
    with quiet_transformers():
        model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    for problem in ("missing_keys", "mismatched_keys"):
        if info[problem]:
            first = min(map(str, info[problem]))
            raise ModelError(
                f"{folder}: is no whole CLIP model: {len(info[problem])} {problem.replace('_', ' ')}, e.g. {first}"
            )
    return model.eval()


def load_image_processor(folder: Path) -> "CLIPImageProcessorPil":
    """The folder's image processor, always the Pillow one: its pixels do not depend on what else is installed."""
    from transformers import CLIPImageProcessorPil

    with quiet_transformers():
        return CLIPImageProcessorPil.from_pretrained(folder)


def substitute(clip_model: "CLIPModel", vision_model: "CLIPVisionModel") -> "CLIPModel":
    """Put a vision encoder's weights into a full CLIP model, in place; returns `clip_model`.

    Does on every transformers what `clip_model.vision_model.load_state_dict(vision_model.vision_model.state_dict())`
    did before transformers 5.6, where `CLIPVisionModel` still had a `.vision_model`.

    Raises:
        ModelError: the two have other parameters or shapes.
    """
    target = dict(clip_model.vision_model.named_parameters())
    target = {name: target[stored] for name, stored in canonical_names(target, "clip_model.vision_model").items()}
    source = vision_model.state_dict()
    source = {name: source[stored] for name, stored in canonical_names(source, "vision_model").items()}
    if odd := sorted(target.keys() ^ source.keys()):
        raise ModelError(f"substitute: {odd[0]!r} is in one of the two models only")
    for name, parameter in target.items():
        if parameter.shape != source[name].shape:
            raise ModelError(f"substitute: {name} is {tuple(source[name].shape)}, not {tuple(parameter.shape)}")
    with torch.no_grad():
        for name, parameter in target.items():
            parameter.copy_(source[name])
    return clip_model


def save_vision_model(model: "CLIPVisionModel", folder: Path, overwrite: bool = False) -> None:
    """Write a `CLIPVisionModel` as a Hugging Face folder under the hub's names. Raises OutputError."""
    weights = model.state_dict()
    names = canonical_names(weights, "the model")
    specs = {hub_name(n): TensorSpec(tuple(weights[s].shape), weights[s].dtype) for n, s in sorted(names.items())}
    geometry = Geometry.model_validate(model.config.to_dict())
    with new_folder(folder, overwrite) as temporary:
        write_text(temporary / "config.json", json.dumps(geometry.to_config(), indent=2) + "\n")
        with SafetensorsWriter(temporary / "model.safetensors", specs) as writer:
            for name, stored in names.items():
                writer.write(hub_name(name), weights[stored])


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or advice from transformers while it loads."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
