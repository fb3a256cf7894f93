"""OpenAI's and OpenCLIP's state dicts come out under our names, and give the features that OpenCLIP gives."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clipfuse.checkpoints.checkpoint import Checkpoint, from_memory, open_checkpoint
from clipfuse.checkpoints.geometry import find_geometry
from clipfuse.checkpoints.layouts import openclip_places
from clipfuse.checkpoints.names import PROJECTION
from clipfuse.checkpoints.openclip import ours, theirs
from clipfuse.checkpoints.store import MemoryStore
from clipfuse.errors import CheckpointError
from clipfuse.models.build import build_vision_model
from tests.openclip_reference import image_features, random_openclip

STATE = random_openclip()


def renamed(state: dict[str, Tensor], outer: str) -> dict[str, Tensor]:
    return {outer + name: value for name, value in state.items()}


def tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}


def features(checkpoint: Checkpoint, pixels: Tensor, folder: Path, heads: int) -> Tensor:
    geometry = find_geometry(folder, checkpoint).model_copy(update={"num_attention_heads": heads})
    with torch.no_grad():
        pooled = build_vision_model(checkpoint, geometry)(pixel_values=pixels).pooler_output
        return pooled @ checkpoint.with_projection()[PROJECTION].T


@pytest.mark.parametrize("outer", ["", "model.", "image_encoder.model."])
@pytest.mark.parametrize("quick", [True, False])
def test_features_are_openclips(tmp_path: Path, outer: str, quick: bool):
    save_file(renamed(STATE, outer), tmp_path / "open_clip_model.safetensors")
    vision = '{"model_cfg": {"quick_gelu": %s, "vision_cfg": {"width": 16, "head_width": 8}}}'
    (tmp_path / "open_clip_config.json").write_text(vision % str(quick).lower())
    checkpoint = open_checkpoint(tmp_path, "model")
    pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = image_features(STATE, pixels, heads=2, quick=quick)
    torch.testing.assert_close(features(checkpoint, pixels, tmp_path, 2), wanted, rtol=1e-5, atol=1e-5)
    other = image_features(STATE, pixels, heads=2, quick=not quick)
    assert (other - wanted).abs().max() > 1e-3, "the activation makes a difference"


def test_a_tower_alone(tmp_path: Path):
    checkpoint = from_memory(tower(STATE), "tower")
    whole = from_memory(STATE, "whole")
    assert set(checkpoint) == set(whole)
    assert all(torch.equal(checkpoint[name], whole[name]) for name in whole)


def test_what_is_not_fused_is_read_lazily_and_in_place(tmp_path: Path):
    save_file(STATE, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors", "model")
    fused = STATE["visual.transformer.resblocks.1.attn.in_proj_weight"]
    for number, part in enumerate("qkv"):
        name = f"encoder.layers.1.self_attn.{part}_proj.weight"
        wanted = fused[16 * number : 16 * (number + 1)]
        assert checkpoint.spec(name).shape == (16, 16)
        assert torch.equal(checkpoint[name], wanted)
        room = bytearray(40)
        assert checkpoint.read_into(name, 3, memoryview(room))
        assert torch.equal(torch.frombuffer(room, dtype=torch.float32), wanted.flatten()[3:13])
    whole = checkpoint.with_projection()
    assert whole.spec(PROJECTION).shape == (8, 16)
    assert torch.equal(whole[PROJECTION], STATE["visual.proj"].T)
    assert not whole.read_into(PROJECTION, 0, memoryview(bytearray(8)))


def test_every_name_comes_back():
    store = MemoryStore(STATE)
    places = openclip_places({name: (store, name) for name in STATE}, "here")
    assert places is not None
    assert len(places) == len(STATE) + 2 * sum("in_proj" in name for name in STATE)
    for name, (_, stored) in places.items():
        assert theirs(name)[0] == stored
        assert (name, theirs(name)[1]) in ours(stored)


def test_the_geometry_is_that_of_the_shapes(tmp_path: Path):
    geometry = find_geometry(tmp_path, from_memory(STATE, "model"))
    found = (geometry.hidden_size, geometry.intermediate_size, geometry.num_hidden_layers, geometry.patch_size)
    assert (*found, geometry.image_size, geometry.projection_dim) == (16, 64, 2, 4, 8, 8)
    assert geometry.hidden_act == "quick_gelu", "OpenAI's, where nothing says otherwise"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"visual.trunk.blocks.0.weight": torch.zeros(2)}, "visual.trunk.blocks.0.weight"),
        ({"visual.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(10, 16)}, "a third each"),
        ({"visual.proj": torch.zeros(16)}, "a projection is a matrix"),
        ({"visual.positional_embedding": torch.zeros(4, 16)}, "none of a ViT"),
        ({"visual.conv1.weight": torch.zeros(16, 3)}, "none of a ViT"),
        ({"visual.ln_pre.weight": torch.zeros(16, dtype=torch.int32)}, "floating point"),
    ],
)
def test_what_is_no_vit_is_refused(tmp_path: Path, change: dict[str, Tensor], words: str):
    with pytest.raises(CheckpointError, match=words):
        find_geometry(tmp_path, from_memory(STATE | change, "model"))
