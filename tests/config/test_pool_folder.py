"""Folders of models as pools."""

from pathlib import Path

import pytest

from clipfuse.config.pool_folder import folder_pool
from clipfuse.config.presets import load_preset
from clipfuse.errors import ConfigError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def members(root: Path) -> dict[str, str]:
    return {m["name"]: str(Path(m["path"]).relative_to(root)) for m in folder_pool(root)["models"]}


def test_the_task_arithmetic_authors_layout(tmp_path: Path):
    touch(tmp_path, "zeroshot.pt", "SUN397/finetuned.pt", "Cars/finetuned.pt", "head_Cars.pt", "notes/readme.txt")
    wanted = {"_pretrained_": "zeroshot.pt", "Cars": "Cars/finetuned.pt", "SUN397": "SUN397/finetuned.pt"}
    assert members(tmp_path) == wanted
    assert load_preset("modelpool", str(tmp_path)) == folder_pool(tmp_path)


def test_the_twenty_task_layout(tmp_path: Path):
    names = [f"{task}Val/nonlinear_{kind}.pt" for task in ("DTD", "MNIST") for kind in ("zeroshot", "finetuned")]
    touch(tmp_path, *names)
    found = members(tmp_path)
    assert list(found) == ["_pretrained_", "DTD", "MNIST"]
    assert found["_pretrained_"] == "DTDVal/nonlinear_zeroshot.pt"


def test_folders_of_the_hubs_layouts_side_by_side(tmp_path: Path):
    touch(tmp_path, "_pretrained_/config.json", "a/adapter_config.json", "b/open_clip_config.json", "logs/x.txt")
    assert members(tmp_path) == {"_pretrained_": "_pretrained_", "a": "a", "b": "b"}


@pytest.mark.parametrize("names", [[], ["readme.txt"], ["_pretrained_/config.json"], ["zeroshot.pt"]])
def test_what_is_no_pool_is_named(tmp_path: Path, names: list[str]):
    touch(tmp_path, *names)
    with pytest.raises(
        ConfigError, match=r"this folder is no pool; it takes <task>/finetuned\.pt, or a folder for each"
    ):
        folder_pool(tmp_path)
