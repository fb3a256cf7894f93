"""An encoder with a module for each task: which one it takes, what it refuses, what it is billed for."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.checkpoints.geometry import read_geometry
from clipfuse.errors import ModelError
from clipfuse.heads import Head
from clipfuse.models.clip_base import ClipBase, open_base
from clipfuse.models.encoder import Encoder, VisionEncoder, build_encoder
from clipfuse.models.per_task import PerTaskEncoder, corrected
from tests.random_clip import write_random_clip

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
EMBED, RANK = 8, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("per_task") / "base"
    write_random_clip(folder, "small")
    return folder


@pytest.fixture(scope="module")
def base(folder: Path) -> ClipBase:
    return open_base(str(folder))


@pytest.fixture
def tower(folder: Path, base: ClipBase) -> VisionEncoder:
    return build_encoder(open_checkpoint(folder, "base"), read_geometry(folder), base)


def module(seed: int, rank: int = RANK, embed: int = EMBED) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "down": torch.randn(rank, embed, generator=random),
        "up": torch.randn(embed, rank, generator=random),
    }


def test_every_task_has_its_own_features(tower: VisionEncoder):
    modules = {"mnist": module(1), "dtd": module(2, rank=5)}
    encoder = PerTaskEncoder(tower, modules)
    assert isinstance(encoder, Encoder)
    assert encoder.needs_task_id
    assert encoder.tasks == {"mnist", "dtd"}
    plain = tower.features(PIXELS, None).double()
    for task, (down, up) in ((name, m.values()) for name, m in modules.items()):
        want = plain - torch.einsum("er,br->be", up.double(), torch.einsum("re,be->br", down.double(), plain).clamp(0))
        assert (want - plain).abs().max() > 0.1
        torch.testing.assert_close(encoder.features(PIXELS, task).double(), want, atol=1e-5, rtol=1e-5)


def test_a_module_of_zeros_changes_nothing(tower: VisionEncoder):
    encoder = PerTaskEncoder(tower, {"mnist": {"down": module(1)["down"], "up": torch.zeros(EMBED, RANK)}})
    assert torch.equal(encoder.features(PIXELS, "mnist"), tower.features(PIXELS, None))


def test_logits_do_not_know_the_length_of_features(tower: VisionEncoder, base: ClipBase):
    encoder = PerTaskEncoder(tower, {"mnist": module(1)})
    head = Head(torch.nn.functional.normalize(torch.randn(4, EMBED), dim=-1), 100.0, base.identity)
    unit = torch.nn.functional.normalize(tower.features(PIXELS, None), dim=-1)
    found = head.logits(encoder, encoder.features(PIXELS, "mnist"))
    torch.testing.assert_close(found, head.logits(encoder, corrected(unit, module(1))), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "told"), [("mnits", "unknown task 'mnits'; did you mean 'mnist'"), (None, "which task an image is from")]
)
def test_other_tasks_are_refused(tower: VisionEncoder, task: str | None, told: str):
    with pytest.raises(ModelError, match=told) as raised:
        PerTaskEncoder(tower, {"mnist": module(1), "dtd": module(2)}).features(PIXELS, task)
    assert "dtd" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"down": torch.zeros(RANK, EMBED)},
        {"down": torch.zeros(RANK, EMBED + 1), "up": torch.zeros(EMBED, RANK)},
        {"down": torch.zeros(RANK, EMBED), "up": torch.zeros(EMBED, RANK + 1)},
        {"down": torch.zeros(EMBED), "up": torch.zeros(EMBED, RANK)},
        {"down": torch.zeros(0, EMBED), "up": torch.zeros(EMBED, 0)},
        {**module(1), "bias": torch.zeros(EMBED)},
    ],
    ids=["empty", "no_up", "other_embed", "other_rank", "flat", "rank_0", "a_bias"],
)
def test_other_modules_are_refused(tower: VisionEncoder, odd: dict[str, Tensor]):
    with pytest.raises(ModelError, match=r"dtd: its module is .* it takes down \(rank, 8\) and up \(8, rank\)"):
        PerTaskEncoder(tower, {"mnist": module(1), "dtd": odd})


def test_no_modules_are_refused(tower: VisionEncoder):
    with pytest.raises(ModelError, match="no module"):
        PerTaskEncoder(tower, {})


def test_modules_are_billed_and_identify(tower: VisionEncoder):
    modules = {"mnist": module(1), "dtd": module(2, rank=5)}
    encoder = PerTaskEncoder(tower, modules)
    assert encoder.bytes == tower.bytes + 4 * 2 * EMBED * (RANK + 5)
    assert encoder.widest == tower.widest
    assert encoder.base == tower.base
    other = {"mnist": module(1), "dtd": module(2, rank=5)}
    other["dtd"]["up"][-1, -1] += 1e-6
    turned = {"dtd": modules["mnist"], "mnist": modules["dtd"]}
    identities = [PerTaskEncoder(tower, m).identity() for m in (modules, other, turned)] + [tower.identity()]
    assert len(set(identities)) == 4
    assert encoder.identity() == identities[0]
    assert encoder.identity() == PerTaskEncoder(tower, dict(reversed(modules.items()))).identity()


def test_modules_are_copied(tower: VisionEncoder):
    mine = {"mnist": module(1)}
    encoder = PerTaskEncoder(tower, mine)
    before = encoder.identity()
    mine["mnist"]["up"].zero_()
    assert encoder.identity() == before


def test_half_towers_keep_their_modules_in_float32(tower: VisionEncoder):
    encoder = PerTaskEncoder(tower, {"mnist": {name: t.half() for name, t in module(1).items()}})
    exact = encoder.features(PIXELS, "mnist")
    assert encoder.to(torch.device("cpu"), torch.bfloat16) is encoder
    found = encoder.features(PIXELS, "mnist")
    assert found.dtype == torch.float32
    assert {t.dtype for t in encoder.modules["mnist"].values()} == {torch.float32}
    torch.testing.assert_close(found, exact, atol=0.2, rtol=0.1)
