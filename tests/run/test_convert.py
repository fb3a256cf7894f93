"""A model in another format is the same model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPVisionModelWithProjection

from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.errors import ClipfuseError
from clipfuse.run.convert import convert
from tests.openclip_reference import image_features
from tests.random_clip import write_random_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small full CLIP."""
    folder = tmp_path_factory.mktemp("clip") / "base"
    write_random_clip(folder, "small")
    return folder


def pixels(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def tensors(folder: Path) -> dict[str, Tensor]:
    found = load_file(next(folder.glob("*.safetensors")))
    return {name: value for name, value in found.items() if "position_ids" not in name}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("name", ["small", "ViT-B/32"])
def test_to_openclip_and_back(tmp_path: Path, name: str):
    write_random_clip(tmp_path / "clip", name)
    convert(str(tmp_path / "clip"), tmp_path / "openclip", "openclip")
    convert(str(tmp_path / "openclip"), tmp_path / "tower", "hf")
    before = tensors(tmp_path / "clip")
    kept = {name: value for name, value in before.items() if name.startswith(("vision_model.", "visual_projection."))}
    assert_same(tensors(tmp_path / "tower"), kept)
    state = tensors(tmp_path / "openclip")
    config = json.loads((tmp_path / "openclip/open_clip_config.json").read_text())["model_cfg"]["vision_cfg"]
    image = pixels(config["image_size"])
    with torch.no_grad():
        wanted = CLIPModel.from_pretrained(tmp_path / "clip").get_image_features(image).pooler_output
        alone = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "tower")(image).image_embeds
    assert torch.equal(alone, wanted)
    found = image_features(state, image, heads=config["width"] // config["head_width"])
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_a_full_clip_is_its_own_text_side(clip: Path, tmp_path: Path):
    facts = convert(str(clip), tmp_path / "a", "openclip")
    convert(str(clip), tmp_path / "tower", "hf")
    again = convert(str(tmp_path / "tower"), tmp_path / "b", "openclip", base=str(clip))
    assert (facts["text side"], again["text side"]) == ("its own", str(clip))
    assert_same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))
    assert set(load_file(tmp_path / "tower/model.safetensors")) == {
        f"vision_model.{n}" for n in open_checkpoint(clip, "")
    }


def test_dtype(clip: Path, tmp_path: Path):
    convert(str(clip), tmp_path / "half", "hf", dtype=torch.float16)
    before = tensors(clip)
    assert_same(tensors(tmp_path / "half"), {n: before[n].half() for n in before if n.startswith("vision_model.")})


def test_a_lora_of_full_rank_is_the_expert_and_a_smaller_one_says_what_it_lost(clip: Path, tmp_path: Path):
    write_random_clip(tmp_path / "expert", "small", seed=1)
    base, expert = (open_checkpoint(folder, "") for folder in (clip, tmp_path / "expert"))
    whole = convert(str(tmp_path / "expert"), tmp_path / "whole", "lora", base=str(clip), rank=16)
    assert whole["error_of_matrices"] < 1e-5
    delta = open_checkpoint(tmp_path / "whole", "whole", base)
    for name in delta:
        torch.testing.assert_close(delta[name], expert[name] - base[name], rtol=1e-4, atol=1e-6)
    assert {name.rsplit(".", 2)[1] for name in delta} == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    part = convert(str(tmp_path / "expert"), tmp_path / "part", "lora", base=str(clip), rank=3)
    found = open_checkpoint(tmp_path / "part", "part", base)
    lost = kept = 0.0
    base, expert = base.with_projection(), expert.with_projection()  # the expert's own cannot be in a LoRA
    for name in base:
        tau = (expert[name] - base[name]).double()
        mine = found[name].double() if name in found else torch.zeros_like(tau)
        lost, kept = lost + float((tau - mine).square().sum()), kept + float(tau.square().sum())
    assert part["error"] == pytest.approx((lost / kept) ** 0.5, rel=1e-5)
    assert 0.1 < part["error_of_matrices"] < part["error_of_worst"]


def test_what_cannot_be_converted(clip: Path, tmp_path: Path):
    with pytest.raises(ClipfuseError, match="there is no difference"):
        convert(str(clip), tmp_path / "lora", "lora", base=str(clip))
    convert(str(clip), tmp_path / "tower", "hf")
    with pytest.raises(ClipfuseError, match="no known base"):
        convert(str(tmp_path / "tower"), tmp_path / "openclip", "openclip")
    with pytest.raises(ClipfuseError, match="is not empty"):
        convert(str(clip), tmp_path / "tower", "hf")
    with pytest.raises(ClipfuseError, match="holds the input"):
        convert(str(tmp_path / "tower"), tmp_path / "tower", "hf", overwrite=True)
    assert not (tmp_path / "lora").exists()
    assert not (tmp_path / "openclip").exists()


def test_a_full_clip_comes_back_whole(clip: Path, tmp_path: Path):
    convert(str(clip), tmp_path / "openclip", "openclip")
    convert(str(tmp_path / "openclip"), tmp_path / "again", "clip", base=str(clip))
    assert_same(tensors(tmp_path / "again"), tensors(clip))
    model, info = CLIPModel.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.vision_config.hidden_act == "quick_gelu"
    assert (tmp_path / "again/preprocessor_config.json").is_file()


def test_what_does_not_fit_is_said_before_anything_is_written(clip: Path, tmp_path: Path):
    write_random_clip(tmp_path / "other", "smaller")
    convert(str(clip), tmp_path / "tower", "hf")
    for to in ("openclip", "clip", "lora"):
        with pytest.raises(ClipfuseError, match="patch_size is|is .*'s|only"):
            convert(str(tmp_path / "tower"), tmp_path / "out", to, base=str(tmp_path / "other"))
    broken = load_file(tmp_path / "tower/model.safetensors")
    broken["vision_model.encoder.layers.0.mlp.fc1.weight"][0, 0] = torch.nan
    save_file(broken, tmp_path / "tower/model.safetensors", {"format": "pt"})
    with pytest.raises(ClipfuseError, match=r"fc1\.weight: it or .* holds NaN"):
        convert(str(tmp_path / "tower"), tmp_path / "out", "lora", base=str(clip))
    del broken["vision_model.post_layernorm.bias"]
    save_file(broken, tmp_path / "tower/model.safetensors", {"format": "pt"})
    with pytest.raises(ClipfuseError, match=r"no whole vision tower: it lacks post_layernorm\.bias"):
        convert(str(tmp_path / "tower"), tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


def test_text_heads_are_the_configurations(clip: Path, tmp_path: Path):
    convert(str(clip), tmp_path / "openclip", "openclip")
    told = json.loads((tmp_path / "openclip/open_clip_config.json").read_text())
    config = json.loads((clip / "config.json").read_text())
    assert told["model_cfg"]["text_cfg"]["heads"] == config["text_config"]["num_attention_heads"]
    assert told["preprocess_cfg"]["mean"] == json.loads((clip / "preprocessor_config.json").read_text())["image_mean"]
