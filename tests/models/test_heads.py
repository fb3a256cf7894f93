"""Zero-shot heads and features equal transformers' own logits; a head of another base is refused."""

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import clipfuse
from clipfuse.errors import ModelError
from clipfuse.heads import zero_shot_heads
from clipfuse.models.encoder import VisionEncoder, known_base, open_base
from clipfuse.run.bench import get_task

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


def test_a_head_of_another_base_is_refused(tmp_path):
    base = open_base(BASE)
    head = zero_shot_heads(base, [get_task("tiny-signs")])["tiny-signs"]
    (tmp_path / "copy").symlink_to(base.folder)
    other = open_base(str(tmp_path / "copy"))
    encoder = VisionEncoder(clipfuse.HuggingFaceClipVisionPool.from_yaml("tiny_TA8").load_pretrained_model(), other)
    with pytest.raises(ModelError, match="does not belong"):
        head.logits(encoder, encoder.features(PIXELS, None))


def test_known_bases_are_found_by_geometry():
    from clipfuse.checkpoints.geometry import Geometry

    assert known_base(Geometry(), "x") == "openai/clip-vit-base-patch32"
    assert known_base(Geometry(patch_size=16), "x") == "openai/clip-vit-base-patch16"
    with pytest.raises(ModelError, match="base="):
        known_base(Geometry(patch_size=8), "x")
