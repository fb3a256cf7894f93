"""Names of parameters: every class and version of transformers leads to the same canonical ones."""

import pytest
import torch

from clipfuse.checkpoints.names import canonical_names, hub_name
from clipfuse.errors import CheckpointError

NAMES = ("embeddings.class_embedding", "pre_layrnorm.bias", "encoder.layers.0.mlp.fc1.weight", "post_layernorm.weight")


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_canonical_names_keep_the_order(prefix: str):
    found = canonical_names([prefix + name for name in NAMES], "here")
    assert list(found.items()) == [(name, prefix + name) for name in NAMES]


def test_hub_names_come_back():
    assert {name: hub_name(name) for name in NAMES} == canonical_names(map(hub_name, NAMES), "here")


def test_every_class_of_transformers_has_the_same_encoder():
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    vision = CLIPVisionConfig(**small)
    with torch.device("meta"):
        models = [
            CLIPVisionModel(vision),
            CLIPVisionModelWithProjection(vision),
            CLIPModel(CLIPConfig(text_config=small, vision_config=vision.to_dict())),
        ]
    names = [set(canonical_names(model.state_dict(), type(model).__name__)) for model in models]
    assert names[0] == names[1] == names[2]
    assert len(names[0]) == 7 + 2 * 16


def test_parts_of_the_base_and_buffers_are_left_out():
    others = ["text_model.encoder.layers.0.mlp.fc1.weight", "text_projection.weight", "visual_projection.weight"]
    stored = [*map(hub_name, NAMES), hub_name("embeddings.position_ids"), "logit_scale", *others]
    assert list(canonical_names(stored, "here")) == list(NAMES)
    assert list(canonical_names([*NAMES, "embeddings.position_ids", *others], "here")) == list(NAMES)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ([], "here: holds no CLIP vision encoder"),
        (["logit_scale", "text_projection.weight"], "here: holds no CLIP vision encoder"),
        (["bert.encoder.layer.0.weight"], "here: holds no CLIP vision encoder"),
        (["visual.conv1.weight", "visual.proj"], "here: holds no CLIP vision encoder"),
        ([*NAMES, "head.weight"], "here: 1 tensors do not belong to a CLIP model, e.g. 'head.weight'"),
        ([*NAMES, "model.x", "model.y"], "here: 2 tensors do not belong to a CLIP model, e.g. 'model.x'"),
        ([*map(hub_name, NAMES), NAMES[0]], f"here: 1 tensors do not belong to a CLIP model, e.g. '{NAMES[0]}'"),
    ],
)
def test_other_models_are_refused(stored: list[str], said: str):
    with pytest.raises(CheckpointError) as caught:
        canonical_names(stored, "here")
    assert str(caught.value).startswith(said)
