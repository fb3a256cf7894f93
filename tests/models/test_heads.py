"""Zero-shot heads and features equal transformers' own logits; a head of another base is refused; heads are kept."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

import clipfuse
from clipfuse.errors import ModelError
from clipfuse.heads import Head, joint_head, zero_shot_heads
from clipfuse.models.clip_base import known_base, open_base
from clipfuse.models.encoder import VisionEncoder
from clipfuse.run.tasks import get_task

BASE = "pkg://clipfuse/tiny/weights/base"
PIXELS = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_logits_equal_transformers():
    base, task = open_base(BASE), get_task("tiny-signs")
    head = zero_shot_heads(base, [task, get_task("tiny-digits")])["tiny-signs"]
    encoder = VisionEncoder(clipfuse.HuggingFaceClipVisionPool.from_yaml("tiny_TA8").load_pretrained_model(), base)
    ours = head.logits(encoder, encoder.features(PIXELS, None))

    model = AutoModel.from_pretrained(base.folder, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(base.folder)
    texts = []
    for row in task.prompts():
        ids = tokens(row, padding=True, return_tensors="pt")
        texts.append(model(**ids, pixel_values=PIXELS[:1]).text_embeds.mean(0))
    text = torch.nn.functional.normalize(torch.stack(texts), dim=-1)
    image = model(**tokens(["a"], return_tensors="pt"), pixel_values=PIXELS).image_embeds
    torch.testing.assert_close(ours, model.logit_scale.exp() * image @ text.T, rtol=1e-5, atol=1e-5)


def copy_of_base(folder: Path, change: str = "") -> Path:
    """The tiny base in another place, with one of its files changed."""
    shutil.copytree(open_base(BASE).folder, folder)
    if change == "weights":
        tensors = load_file(folder / "model.safetensors")
        tensors["visual_projection.weight"] *= 2
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    elif change:
        with (folder / change).open("a") as file:
            file.write("\n")
    return folder


def test_a_head_of_another_base_is_refused_and_a_copys_is_not(tmp_path: Path):
    head = zero_shot_heads(open_base(BASE), [get_task("tiny-signs")])["tiny-signs"]
    vision = clipfuse.HuggingFaceClipVisionPool.from_yaml("tiny_TA8").load_pretrained_model()
    same = VisionEncoder(vision, open_base(str(copy_of_base(tmp_path / "copy"))))
    assert head.logits(same, same.features(PIXELS, None)).shape == (5, 16)
    other = VisionEncoder(vision, open_base(str(copy_of_base(tmp_path / "other", "weights"))))
    with pytest.raises(ModelError, match="does not belong"):
        head.logits(other, other.features(PIXELS, None))


def test_heads_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = tmp_path / "heads"
    kept.mkdir()
    signs, digits = get_task("tiny-signs"), get_task("tiny-digits")
    made = zero_shot_heads(open_base(BASE), [signs, digits], kept)
    assert len(list(kept.iterdir())) == 2

    def never(self: object) -> None:
        raise AssertionError("the text tower is not needed")

    monkeypatch.setattr("clipfuse.models.clip_base.ClipBase.text_model", never)
    renamed = signs.model_copy(update={"name": "other name"})
    copy = open_base(str(copy_of_base(tmp_path / "copy")))
    found = zero_shot_heads(copy, [renamed, digits], kept)
    assert torch.equal(found["other name"].weights, made["tiny-signs"].weights)
    assert found["tiny-digits"].key == made["tiny-digits"].key
    changes = [
        (open_base(BASE), signs.model_copy(update={"classes": [*signs.classes[:-1], "another"]})),
        (open_base(BASE), signs.model_copy(update={"templates": ["a {c}."]})),
        (open_base(str(copy_of_base(tmp_path / "w", "weights"))), signs),
        (open_base(str(copy_of_base(tmp_path / "t", "tokenizer.json"))), signs),
    ]
    for base, task in changes:
        with pytest.raises(AssertionError, match="not needed"):
            zero_shot_heads(base, [task], kept)


def test_a_damaged_head_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    task, base = get_task("tiny-signs"), open_base(BASE)
    (made,) = zero_shot_heads(base, [task], tmp_path).values()
    (path,) = tmp_path.iterdir()
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    (again,) = zero_shot_heads(base, [task], tmp_path).values()
    assert torch.equal(made.weights, again.weights)
    assert "is damaged" in caplog.text


def test_a_joint_head_is_all_heads_in_order():
    a, b = (Head(torch.eye(size, 5), 10.0, "b") for size in (2, 4))
    joint = joint_head({"x": a, "y": b})
    assert (joint.starts, joint.ends) == ({"x": 0, "y": 2}, [2, 6])
    assert torch.equal(joint.head.weights, torch.cat([a.weights, b.weights]))


def test_known_bases_are_found_by_geometry():
    from clipfuse.checkpoints.geometry import Geometry

    assert known_base(Geometry(), "x") == "openai/clip-vit-base-patch32"
    assert known_base(Geometry(patch_size=16), "x") == "openai/clip-vit-base-patch16"
    with pytest.raises(ModelError, match="base="):
        known_base(Geometry(patch_size=8), "x")
