"""On a GPU: the same pixels, counts that agree, smaller batches where memory runs out."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from picture_splits import PREPROCESS, Linear, make_head, make_split, matrices
from torch import Tensor

from clipfuse.data import ImageSet, blocks
from clipfuse.evaluate import Candidate, Scoring, evaluate

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return ImageSet(make_split("x", 2500), PREPROCESS)


def test_pixels_are_those_of_the_cpu(images: ImageSet):
    for here, there in zip(blocks(images), blocks(images, device=GPU), strict=True):
        assert there.pixels.device.type == "cuda"
        assert torch.equal(here.pixels, there.pixels.cpu())
        assert here.digest == there.digest


@pytest.mark.parametrize("settings", [{}, {"dtype": "tf32"}, {"batch_size": 100}])
def test_counts_agree_with_the_cpu(images: ImageSet, settings: Mapping[str, Any]):
    weights, heads = matrices("a")["a"], {"x": make_head()}
    (wanted,) = evaluate([Candidate("a", lambda: Linear(weights), 1)], [images], heads)
    (found,) = evaluate(
        [Candidate("a", lambda: Linear(weights.to(GPU)), 1)], [images], heads, Scoring(device=GPU, **settings)
    )
    differ = int((found.columns["prediction"] != wanted.columns["prediction"]).sum())
    assert differ <= (25 if settings.get("dtype") else 2)
    assert found.n == wanted.n


def test_a_batch_that_does_not_fit_is_halved(images: ImageSet):
    class Greedy(Linear):
        def features(self, pixels: Tensor, task: str | None) -> Tensor:
            free, _ = torch.cuda.mem_get_info()
            torch.empty(free // 16 * len(pixels), dtype=torch.uint8, device=GPU)
            return super().features(pixels, task)

    weights, heads = matrices("a")["a"], {"x": make_head()}
    (wanted,) = evaluate(
        [Candidate("a", lambda: Linear(weights.to(GPU)), 1)], [images], heads, Scoring(device=GPU, batch_size=8)
    )
    (found,) = evaluate(
        [Candidate("a", lambda: Greedy(weights.to(GPU)), 1)], [images], heads, Scoring(device=GPU, batch_size=64)
    )
    assert found.batch_size < 64
    assert abs(found.correct - wanted.correct) <= 2
