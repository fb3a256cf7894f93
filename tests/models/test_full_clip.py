"""Full CLIPs: what transformers finds in the folder, whose tensors they are, and which bases are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.checkpoints.geometry import Geometry, read_geometry
from clipfuse.checkpoints.locate import local_path
from clipfuse.checkpoints.names import PROJECTION, hub_name
from clipfuse.errors import ModelError
from clipfuse.models.clip_base import ClipBase
from clipfuse.models.full_clip import write_full_clip

BASE = local_path("pkg://clipfuse/tiny/weights/base")
EXPERT = local_path("pkg://clipfuse/tiny/weights/tiny-signs")


@pytest.fixture
def tower() -> dict[str, Tensor]:
    return dict(open_checkpoint(EXPERT, "signs"))


@pytest.fixture
def base(tmp_path: Path) -> ClipBase:
    """A copy of the tiny base, as a careless author leaves it: paths in its files, a buffer among its weights."""
    folder = tmp_path / "base"
    shutil.copytree(BASE, folder)
    words = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(words | {"name_or_path": "/home/me/clip"}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "/home/me/clip"}))
    buffers = {f"{side}_model.embeddings.position_ids": torch.arange(7)[None] for side in ("text", "vision")}
    weights = load_file(folder / "model.safetensors")
    save_file(weights | buffers, folder / "model.safetensors", {"format": "pt"})
    return ClipBase("base", folder)


def write(folder: Path, tower: dict[str, Tensor], base: ClipBase, geometry: Geometry | None = None) -> Path:
    folder.mkdir()
    write_full_clip(folder, tower, base, geometry or read_geometry(EXPERT))
    return folder


def test_transformers_finds_every_parameter(tmp_path, tower, base):
    from transformers import CLIPModel, CLIPVisionModel

    from clipfuse.models.build import quiet_transformers

    folder = write(tmp_path / "full", tower, base)
    with quiet_transformers():
        full, info = CLIPModel.from_pretrained(folder, output_loading_info=True)
        vision, found = CLIPVisionModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not found["missing_keys"]
    stored = {name: tensor.float() for name, tensor in load_file(BASE / "model.safetensors").items()}
    mine = {hub_name(name): tensor.float() for name, tensor in tower.items()}
    assert full.state_dict().keys() == stored.keys()
    for name, tensor in full.state_dict().items():
        assert torch.equal(tensor.float(), mine.get(name, stored[name])), name
    for name, tensor in vision.state_dict().items():
        assert torch.equal(tensor.float(), mine[f"vision_model.{name.removeprefix('vision_model.')}"])
    assert any(not torch.equal(mine[name], stored[name]) for name in mine)


def test_files_are_the_bases_but_for_paths_of_its_machine(tmp_path, tower, base):
    folder = write(tmp_path / "full", tower, base)
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "preprocessor_config.json"):
        assert (folder / name).read_bytes() == (BASE / name).read_bytes()
    assert json.loads((folder / "tokenizer_config.json").read_text()) == json.loads(
        (BASE / "tokenizer_config.json").read_text()
    )
    assert json.loads((folder / "config.json").read_text()) == json.loads((BASE / "config.json").read_text())
    names = load_file(folder / "model.safetensors").keys()
    assert names == load_file(BASE / "model.safetensors").keys()


def test_a_projection_of_its_own_takes_the_place_of_the_bases(tmp_path, tower, base):
    own = torch.full_like(base.projection, 0.5)
    folder = write(tmp_path / "full", tower | {PROJECTION: own}, base)
    assert torch.equal(load_file(folder / "model.safetensors")[PROJECTION], own)


def test_tensors_keep_their_dtype_and_the_configuration_names_one_that_holds_all(tmp_path, tower, base):
    double = {name: tensor.double() for name, tensor in tower.items()}
    folder = write(tmp_path / "full", double, base)
    stored = load_file(folder / "model.safetensors")
    assert {stored["vision_model.post_layernorm.weight"].dtype, stored["logit_scale"].dtype} == {
        torch.float64,
        torch.float16,
    }
    config = json.loads((folder / "config.json").read_text())
    assert [config["dtype"], config["text_config"]["dtype"], config["vision_config"]["dtype"]] == ["float64"] * 3


def test_another_geometry_is_refused(tmp_path, tower, base):
    geometry = read_geometry(EXPERT).model_copy(update={"hidden_act": "gelu"})
    with pytest.raises(ModelError, match="does not belong to base: hidden_act is gelu, the base's quick_gelu$"):
        write(tmp_path / "full", tower, base, geometry)


@pytest.mark.parametrize(
    ("lacks", "message"),
    [
        (("tokenizer.json", "vocab.json"), "base: has no tokenizer (tokenizer.json or vocab.json)"),
        (("preprocessor_config.json",), "base: has no image processor (preprocessor_config.json or processor_config"),
    ],
)
def test_a_base_without_words_or_processor_is_refused(tmp_path, tower, base, lacks, message):
    for name in lacks:
        (base.folder / name).unlink()
    with pytest.raises(ModelError) as error:
        write(tmp_path / "full", tower, base)
    assert str(error.value).startswith(message)


def test_a_base_that_is_not_whole_is_refused(tmp_path, tower, base):
    weights = load_file(base.folder / "model.safetensors")
    del weights["text_model.final_layer_norm.bias"]
    save_file(weights, base.folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="base: is no whole CLIP model: it lacks text_model.final_layer_norm.bias$"):
        write(tmp_path / "full", tower, base)


def test_a_vision_encoder_is_no_base(tmp_path, tower):
    with pytest.raises(ModelError, match="signs: is not a full CLIP model"):
        write(tmp_path / "full", tower, ClipBase("signs", EXPERT))
