"""The geometry in a folder's config.json, as transformers reads it."""

import json
from pathlib import Path

import pytest

from clipfuse.checkpoints.geometry import Geometry, parameter_shapes, read_geometry
from clipfuse.errors import CheckpointError

LARGE = Geometry(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    patch_size=14,
    image_size=336,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    projection_dim=768,
)


def write(folder: Path, tree: object) -> Path:
    (folder / "config.json").write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return folder


def test_defaults_are_those_of_transformers():
    from transformers import CLIPVisionConfig

    assert Geometry() == Geometry.model_validate(CLIPVisionConfig().to_dict())


@pytest.mark.parametrize("geometry", [Geometry(), LARGE, LARGE.model_copy(update={"linearised": True})])
def test_written_and_read_again(tmp_path: Path, geometry: Geometry):
    assert read_geometry(write(tmp_path, geometry.to_config())) == geometry


def test_only_linearised_models_say_so():
    linearised = LARGE.model_copy(update={"linearised": True})
    assert linearised.to_config() == LARGE.to_config() | {"linearised": True}
    assert "linearised" not in LARGE.to_config()
    assert (str(linearised), linearised.model_dump_json()) != (str(LARGE), LARGE.model_dump_json())
    assert str(linearised) == f"{LARGE}, linearised"


def test_parameters_are_those_of_transformers():
    from random_models import SMALL, vision_model

    shapes = {name: tuple(tensor.shape) for name, tensor in vision_model(0).state_dict().items()}
    assert parameter_shapes(SMALL) == shapes


def test_transformers_reads_what_is_written(tmp_path: Path):
    from transformers import CLIPVisionConfig

    config = CLIPVisionConfig.from_pretrained(write(tmp_path, LARGE.to_config()))
    assert {key: getattr(config, key) for key in LARGE.model_dump()} == LARGE.model_dump()


def test_of_a_full_clip(tmp_path: Path):
    from transformers import CLIPConfig

    config = CLIPConfig(vision_config=LARGE.model_dump(), text_config={"hidden_size": 16}, projection_dim=768)
    config.save_pretrained(tmp_path)
    assert read_geometry(tmp_path) == LARGE


def test_old_files_of_the_hub_are_silent_on_much(tmp_path: Path):
    vision = {"hidden_size": 1024, "transformers_version": "4.16.0.dev0", "torch_dtype": None, "pruned_heads": {}}
    tree = {"model_type": "clip", "projection_dim": 768, "vision_config": vision, "text_config_dict": None}
    assert read_geometry(write(tmp_path, tree)) == Geometry(hidden_size=1024, projection_dim=768)


def test_beside_one_weights_file(tmp_path: Path):
    write(tmp_path, LARGE.to_config())
    (tmp_path / "model.safetensors").touch()
    assert read_geometry(tmp_path / "model.safetensors") == LARGE


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ("", "is not a model's configuration"),
        ("[1, 2]", "is not a model's configuration"),
        ("{" * 100_000, "is not a model's configuration"),
        ('{"a":' * 100_000, "is not a model's configuration"),
        ({"vision_config": 3}, "is not a model's configuration"),
        ({"vision_config": None}, "is not a model's configuration"),
        ({"model_type": "bert"}, "is the configuration of a 'bert' model, not of a CLIP"),
        ({"hidden_size": "wide"}, "hidden_size: input should be a valid integer"),
        ({"hidden_size": 7.5}, "hidden_size: input should be a valid integer"),
        ({"patch_size": 0}, "patch_size: input should be greater than 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: input should be greater than 0"),
        ({"hidden_act": None}, "hidden_act: input should be a valid string"),
        ({"linearised": "in part"}, "linearised: input should be a valid boolean"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_damaged(tmp_path: Path, tree: object, said: str):
    with pytest.raises(CheckpointError) as caught:
        read_geometry(write(tmp_path, tree))
    assert str(caught.value).startswith(f"{tmp_path}/config.json: {said}")
    assert "\n" not in str(caught.value)


def test_absent(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"config\.json: no such file; a Hugging Face model folder has one$"):
        read_geometry(tmp_path)
