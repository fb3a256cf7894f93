"""What the field writes in its scripts works beside clipfuse, with models and data of a hub; and a lock holds a job."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from standin_hub import StandInHub, cli, run, serving

from clipfuse.checkpoints.locate import local_path

BASE, EXPERT = "openai/clip-vit-base-patch32", "tanganke/clip-vit-base-patch32_gtsrb"

SNIPPET = """
import torch
from datasets import load_dataset
from transformers import CLIPModel, CLIPProcessor, CLIPVisionModel
import clipfuse

data = load_dataset("tanganke/gtsrb", split="test")
expert = CLIPVisionModel.from_pretrained("tanganke/clip-vit-base-patch32_gtsrb")
clip = CLIPModel.from_pretrained("openai/clip-vit-base-patch32")
before = clip.vision_model.post_layernorm.weight.clone()
clipfuse.substitute(clip, expert)
assert not torch.equal(before, clip.vision_model.post_layernorm.weight)
state = {name.removeprefix("vision_model."): value for name, value in expert.state_dict().items()}
clip.vision_model.load_state_dict(state)  # what the old snippet comes to since transformers 5.6

pool = clipfuse.HuggingFaceClipVisionPool.from_tree(
    {"models": {"_pretrained_": "openai/clip-vit-base-patch32", "gtsrb": "tanganke/clip-vit-base-patch32_gtsrb"}}
)
mine = pool.load_model("gtsrb").state_dict()
assert all(torch.equal(value, mine[name].to(value.dtype)) for name, value in expert.state_dict().items())
print(len(data), data[0]["image"].size)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInHub]:
    """The tiny suite's base and an expert under the names that the field knows, and pictures of signs."""
    root = tmp_path_factory.mktemp("hub")
    for repo, name in ((BASE, "base"), (EXPERT, "tiny-signs")):
        shutil.copytree(local_path(f"pkg://clipfuse/tiny/weights/{name}"), root / "models" / repo)
    rows = []
    for number in range(6):
        file = io.BytesIO()
        Image.effect_noise((20, 20), 10 + number).convert("RGB").save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": f"{number}.png"}, "label": number % 43})
    folder = root / "datasets/tanganke/gtsrb/data"
    folder.mkdir(parents=True)
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}}}
    table = pa.Table.from_pylist(rows)
    for split in ("train", "test"):
        told = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        pq.write_table(told, folder / f"{split}-00000-of-00001.parquet")
    with serving(root) as found:
        yield found


def test_the_fields_own_snippets(hub: StandInHub, tmp_path: Path):
    done = run(hub, tmp_path, "-c", SNIPPET)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6 (20, 20)")


def test_a_lock_holds_a_job_to_the_commits_that_it_names(hub: StandInHub, tmp_path: Path):
    words = ["evaluate", EXPERT, f"base={BASE}", "taskpool.tasks=[gtsrb]"]
    first = cli(hub, tmp_path, *words, "--out", str(tmp_path / "first"))
    assert first.returncode == 0, first.stderr
    opened = {entry["ref"]: entry for entry in json.loads((tmp_path / "first/clipfuse.lock").read_text())["opened"]}
    assert set(opened) == {BASE, EXPERT, "tanganke/gtsrb"}
    assert opened[EXPERT]["revision"] == hub.commit("models", EXPERT)
    assert "model.safetensors" in opened[BASE]["files"]
    assert "tokenizer.json" in opened[BASE]["files"]

    config = hub.root / "models" / EXPERT / "config.json"
    config.write_text(config.read_text() + "\n")  # the hub moves on
    assert hub.commit("models", EXPERT) != opened[EXPERT]["revision"]
    again = cli(hub, tmp_path, *words, "--locked", str(tmp_path / "first"), "--out", str(tmp_path / "again"))
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again/clipfuse.lock").read_text() == (tmp_path / "first/clipfuse.lock").read_text()
    other = cli(hub, tmp_path, "evaluate", BASE, *words[2:], "split=train", "--locked", str(tmp_path / "first"))
    assert other.returncode == 0, "what the lock names may be used otherwise"
    stranger = cli(hub, tmp_path, "evaluate", EXPERT + "@main", *words[2:], "--locked", str(tmp_path / "first"))
    assert stranger.returncode == 2
    assert f"{EXPERT}@main: is not in" in stranger.stderr
