"""transformers' models from our weights and back."""

from pathlib import Path

import pytest
import torch
from random_models import SMALL, vision_model
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

import clipfuse
from clipfuse.checkpoints.checkpoint import from_memory, open_checkpoint
from clipfuse.checkpoints.geometry import read_geometry
from clipfuse.errors import ModelError
from clipfuse.models.build import build_vision_model

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def clip_model(seed: int = 0) -> CLIPModel:
    torch.manual_seed(seed)
    text = {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=SMALL.model_dump(), projection_dim=16)).eval()


@torch.no_grad()
def test_a_built_model_is_the_model():
    model = vision_model(1)
    built = build_vision_model(from_memory(model, "m"), SMALL)
    assert torch.equal(built(PIXELS).pooler_output, model(PIXELS).pooler_output)
    next(built.parameters()).zero_()
    assert next(model.parameters()).abs().sum() > 0, "the built model has its own weights"


def test_weights_of_another_geometry_are_refused():
    with pytest.raises(ModelError, match="do not fit"):
        build_vision_model(from_memory(vision_model(1), "m"), SMALL.model_copy(update={"num_hidden_layers": 3}))
    with pytest.raises(ModelError, match="the geometry says"):
        build_vision_model(from_memory(vision_model(1), "m"), SMALL.model_copy(update={"intermediate_size": 128}))


@torch.no_grad()
def test_substitute_does_what_the_snippet_of_the_field_did():
    clip, vision = clip_model(), vision_model(5)
    text = {name: p.clone() for name, p in clip.named_parameters() if not name.startswith("vision_model.")}
    assert clipfuse.substitute(clip, vision) is clip
    pooled = clip.vision_model(PIXELS).pooler_output
    assert torch.equal(pooled, vision(PIXELS).pooler_output)
    assert all(torch.equal(dict(clip.named_parameters())[name], value) for name, value in text.items())


def test_substitute_refuses_another_geometry_and_changes_nothing():
    from transformers import CLIPVisionConfig

    clip = clip_model()
    before = [p.clone() for p in clip.parameters()]
    for change in ({"num_hidden_layers": 1}, {"intermediate_size": 96}):
        other = CLIPVisionModel(CLIPVisionConfig(**(SMALL.model_dump() | change)))
        with pytest.raises(ModelError, match="substitute"):
            clipfuse.substitute(clip, other)
    assert all(torch.equal(a, b) for a, b in zip(before, clip.parameters(), strict=True))


@torch.no_grad()
def test_what_save_model_writes_every_transformers_reads(tmp_path: Path, pool_yaml: Path):
    pool = clipfuse.HuggingFaceClipVisionPool.from_yaml(pool_yaml)
    model = pool.load_model("signs")
    pool.save_model(model, tmp_path / "saved")
    again, info = CLIPVisionModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(again(PIXELS).pooler_output, model(PIXELS).pooler_output)
    from safetensors import safe_open

    with safe_open(tmp_path / "saved/model.safetensors", "pt") as file:
        assert all(name.startswith("vision_model.") for name in file.keys())  # noqa: SIM118
    assert read_geometry(tmp_path / "saved") == SMALL
    assert set(open_checkpoint(tmp_path / "saved", "saved")) == set(pool.weights.specs)


@torch.no_grad()
def test_the_pool_loads_models_processors_and_full_clips():
    pool = clipfuse.HuggingFaceClipVisionPool.from_yaml("tiny_TA8")
    assert pool.has_pretrained
    assert pool.all_model_names == ("_pretrained_", *pool.model_names)
    assert len(pool) == len(pool.model_names) == len(list(pool.named_models()))
    assert "tiny-signs" in pool
    assert pool.load_processor().size == {"shortest_edge": 32}
    expert = pool.load_model("tiny-signs", torch.float16)
    assert expert.dtype == torch.float16
    clip = pool.load_clip_model("tiny-signs")
    found = clip.vision_model(PIXELS).pooler_output
    assert torch.equal(found, pool.load_model("tiny-signs")(PIXELS).pooler_output)
    with pytest.raises(clipfuse.ClipfuseError, match="did you mean 'tiny-signs'"):
        pool.load_model("tiny-sign")
