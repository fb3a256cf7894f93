"""Models in OpenCLIP's layout: fused attention, transposed projections, and the configuration that it builds from."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from clipfuse.checkpoints.json_file import read_json
from clipfuse.checkpoints.openclip import Part, theirs
from clipfuse.checkpoints.parts import THIRDS
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter, write_text
from clipfuse.errors import ModelError
from clipfuse.run.source import Source, Told


def write_openclip(source: Source, folder: Path, dtype: torch.dtype | None, told: Told, rank: int) -> Mapping[str, Any]:
    """`open_clip_model.safetensors` and `open_clip_config.json`: what `open_clip.create_model("local-dir:…")` takes."""
    places = source.whole
    wanted: dict[str, list[tuple[str, Part]]] = {}
    for name in places:
        stored, part = theirs(name)
        wanted.setdefault(stored, []).append((name, part))
    specs: dict[str, TensorSpec] = {}
    for stored, parts in wanted.items():
        store, at = places[parts[0][0]]
        spec = store.specs[at]
        fused = parts[0][1] in THIRDS
        if fused and len(parts) != 3:
            raise ModelError(f"{source.at.ref}: lacks query, key or value of {stored}")
        shape = (3 * spec.shape[0], *spec.shape[1:]) if fused else spec.shape
        specs[stored] = TensorSpec(shape[::-1] if parts[0][1] == "transposed" else shape, dtype or spec.dtype)
    with SafetensorsWriter(folder / "open_clip_model.safetensors", specs) as writer:
        for stored, parts in wanted.items():
            for name, part in parts:
                store, at = places[name]
                values = store.read(at).to(specs[stored].dtype)
                start = THIRDS[part] * values.numel() if part in THIRDS else 0
                writer.write(stored, values.mT if part == "transposed" else values, start)
                store.release(at)
                told(store.specs[at].nbytes)
    write_text(folder / "open_clip_config.json", json.dumps(openclip_config(source, specs), indent=2) + "\n")
    return {"tensors": len(specs), "text side": "its own" if source.own_text else source.base.ref}


def openclip_config(source: Source, specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """What open_clip builds the model from."""
    geometry, text = source.geometry, specs["token_embedding.weight"].shape
    layers = {name.split(".")[2] for name in specs if name.startswith("transformer.resblocks.")}
    folder = source.at.folder if source.own_text else source.base.folder
    return {
        "model_cfg": {
            "embed_dim": specs["visual.proj"].shape[1],
            "quick_gelu": geometry.hidden_act == "quick_gelu",
            "vision_cfg": {
                "image_size": geometry.image_size,
                "layers": geometry.num_hidden_layers,
                "width": geometry.hidden_size,
                "head_width": geometry.hidden_size // geometry.num_attention_heads,
                "mlp_ratio": geometry.intermediate_size / geometry.hidden_size,
                "patch_size": geometry.patch_size,
            },
            "text_cfg": {
                "context_length": specs["positional_embedding"].shape[0],
                "vocab_size": text[0],
                "width": text[1],
                "heads": text_heads(folder, text[1]),
                "layers": len(layers),
            },
        },
        "preprocess_cfg": {
            **mean_and_deviation(folder),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def text_heads(folder: Path, width: int) -> int:
    """Heads of a text encoder as its configuration says, else 64 features a head, as OpenAI's."""
    for name, keys in (("config.json", ("text_config", "num_attention_heads")),
                       ("open_clip_config.json", ("model_cfg", "text_cfg", "heads"))):  # fmt: skip
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            found: Any = read_json(folder / name)
            for key in keys:
                found = found[key]
            return int(found)
    return max(1, width // 64)


def mean_and_deviation(folder: Path) -> dict[str, Any]:
    """Of the colours, as a folder's processor has them, else OpenAI's."""
    try:
        found = read_json(folder / "preprocessor_config.json")
        return {"mean": list(found["image_mean"]), "std": list(found["image_std"])}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
