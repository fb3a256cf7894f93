"""Counter-based draws: any piece of a stream is that piece of the whole, and the words are NumPy's Philox, also torch's."""

import numpy as np
import pytest
import torch

from clipfuse.fusion.dare import Dare, dare
from clipfuse.fusion.della import Della, della
from clipfuse.fusion.random_bits import keep_at_random, numpy_draws, philox_key, torch_draws, torch_words
from clipfuse.pool import Leaf

PARTS = (7, "encoder.layers.0.mlp.fc1.weight", "signs")
PIECES = [(0, 1), (5, 100), (16, 16), (31, 34), (65536, 1000), (3, 0), (12_345, 54_321)]


@pytest.mark.parametrize(("start", "count"), PIECES)
def test_a_piece_is_a_piece_of_the_whole(start: int, count: int):
    whole = numpy_draws(PARTS, 0, 70_000)
    assert np.array_equal(numpy_draws(PARTS, start, count), whole[start : start + count])


def test_the_words_are_numpys_philox():
    words = np.random.Philox(key=np.array(philox_key(PARTS), np.uint64), counter=[0, 0, 0, 0]).random_raw(1000)
    parts = np.stack([(words >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4)], 1).ravel()
    assert np.array_equal(numpy_draws(PARTS, 0, 4000), parts)


@pytest.mark.parametrize("first", [0, 1, 1000, 2**31 - 3, 2**32 - 2, 2**40, 2**63 - 20])
def test_torch_has_the_words_of_numpy(first: int):
    """Whatever the key's high bits are and wherever a counter's halves carry."""
    keys = [philox_key((seed, "x")) for seed in range(50)]
    keys += [(0, 0), (2**64 - 1, 2**64 - 1), (2**63, 2**31), (2**32 - 1, 2**63 - 1)]
    for key in keys:
        want = np.random.Philox(key=np.array(key, np.uint64), counter=[first, 0, 0, 0]).random_raw(50)
        assert np.array_equal(torch_words(key, first, 50, "cpu").numpy().view(np.uint64), want)


@pytest.mark.parametrize(("start", "count"), PIECES)
def test_torch_has_the_draws_of_numpy(start: int, count: int):
    assert np.array_equal(torch_draws(PARTS, start, count, "cpu").numpy(), numpy_draws(PARTS, start, count))


@pytest.mark.parametrize("drop", [0, 20_000, 65_535])
def test_what_is_kept_are_the_draws_from_drop_on(drop: int):
    draws, out, each = numpy_draws(PARTS, 3, 1000), torch.empty(1000), torch.empty(1000)
    count = keep_at_random(PARTS, 3, drop, out)
    assert np.array_equal(out.numpy(), draws >= drop)
    assert keep_at_random(PARTS, 3, torch.full((1000,), float(drop)), each) == count == int(out.sum())
    assert torch.equal(out, each)


def test_streams_differ_and_are_uniform():
    a, b = numpy_draws(PARTS, 0, 200_000), numpy_draws((8, *PARTS[1:]), 0, 200_000)
    assert (a == b).mean() < 1e-3
    assert abs((a < 6554).mean() - 0.1) < 0.003
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize(("start", "count"), PIECES)
def test_cuda_has_the_draws_of_the_cpu(start: int, count: int):
    for seed in range(20):
        parts = (seed, *PARTS[1:])
        assert np.array_equal(torch_draws(parts, start, count, "cuda").cpu().numpy(), numpy_draws(parts, start, count))


@pytest.mark.gpu
@pytest.mark.parametrize(("edit", "cfg"), [(dare, Dare(drop=0.3)), (della, Della(density=0.4, epsilon=0.2))])
def test_random_edits_on_cuda_are_those_of_the_cpu(edit, cfg):
    generator = torch.Generator().manual_seed(0)
    base, *experts = (torch.randn(300, 257, generator=generator) for _ in range(3))
    here = Leaf("w", ("a", "b"), base, tuple(experts), seed=5)
    there = Leaf("w", ("a", "b"), base.cuda(), tuple(expert.cuda() for expert in experts), seed=5)
    found = edit(there, cfg).cpu()
    assert torch.equal(found != 0, edit(here, cfg) != 0)
    torch.testing.assert_close(found, edit(here, cfg), rtol=1e-6, atol=0)
    assert here.tally == there.tally
