"""Writes the models as folders that transformers 4 and 5 load, and checks that they do."""

import json
import shutil
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, CLIPModel, CLIPVisionModel, pipeline

from clipfuse.tiny.canvas import SIDE
from tiny.model import PIXEL_MEAN, PIXEL_STD, POSITIONS

PREPROCESSOR = {
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(PIXEL_MEAN),
    "image_processor_type": "CLIPImageProcessor",
    "image_std": list(PIXEL_STD),
    "processor_class": "CLIPProcessor",
    "resample": int(Image.Resampling.BICUBIC),
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": SIDE},
}

TOKENIZER = ("merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json")

INHERITED = {
    "_name_or_path",
    "chunk_size_feed_forward",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
}


def write_base(clip: CLIPModel, tokenizer_files: Path, folder: Path) -> None:
    """Write the whole CLIP with its tokenizer and preprocessor."""
    folder.mkdir(parents=True)
    write_config(clip.config.to_dict(), "CLIPModel", folder)
    write_tensors(clip.state_dict(), folder)
    write_json(PREPROCESSOR, folder / "preprocessor_config.json")
    for file in TOKENIZER:
        shutil.copy(tokenizer_files / file, folder / file)


def write_config(fields: dict, architecture: str, folder: Path) -> None:
    """Write config.json. Its dtype is float32: the files are halves to be small, nobody should compute in them."""
    write_json(spoken(fields) | {"architectures": [architecture], "dtype": "float32"}, folder / "config.json")


def spoken(fields: dict) -> dict:
    """The settings that say something about a CLIP: without nulls and without what every configuration inherits."""
    kept = {name: value for name, value in fields.items() if value is not None and name not in INHERITED}
    return {name: spoken(value) if isinstance(value, dict) else value for name, value in kept.items()}


def write_tensors(weights: dict[str, Tensor], folder: Path) -> None:
    """Write model.safetensors in float16, names as they come."""
    halves = {name: value.detach().to(torch.float16).contiguous() for name, value in weights.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(value: dict, path: Path) -> None:
    """JSON as transformers writes it: two spaces, sorted keys."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_base(folder: Path) -> None:
    """Load the base as a user would; raise AssertionError if something is missing, left over, or not the file's."""
    check_tensors(CLIPModel, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == POSITIONS, tokenizer.model_max_length
    AutoProcessor.from_pretrained(folder)
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    answer = classify(Image.new("RGB", (SIDE, SIDE), "red"), candidate_labels=["red", "blue"])
    assert len(answer) == 2, answer


def check_expert(folder: Path) -> None:
    """Load an expert as a user would; raise AssertionError if a tensor is missing, left over, or not the file's."""
    check_tensors(CLIPVisionModel, folder)


def check_tensors(kind: type[CLIPModel] | type[CLIPVisionModel], folder: Path) -> None:
    """Load a folder and compare with its file, whatever prefix this version of transformers uses inside."""
    model, report = cast(tuple, kind.from_pretrained(folder, output_loading_info=True))
    assert not any(report.values()), report
    assert model.dtype == torch.float32, model.dtype
    inside = {name.removeprefix("vision_model."): value for name, value in model.state_dict().items()}
    file = {
        name.removeprefix("vision_model."): value for name, value in load_file(folder / "model.safetensors").items()
    }
    assert inside.keys() == file.keys(), inside.keys() ^ file.keys()
    assert all(torch.equal(inside[name], value.float()) for name, value in file.items())
