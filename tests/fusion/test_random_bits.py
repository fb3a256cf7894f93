"""Counter-based draws: any piece of a stream is that piece of the whole, and the words are NumPy's Philox."""

import numpy as np
import pytest

from clipfuse.fusion.random_bits import draws16, philox_key

PARTS = (7, "encoder.layers.0.mlp.fc1.weight", "signs")


@pytest.mark.parametrize(("start", "count"), [(0, 1), (5, 100), (16, 16), (31, 34), (65536, 1000), (3, 0)])
def test_a_piece_is_a_piece_of_the_whole(start: int, count: int):
    whole = draws16(PARTS, 0, 70_000)
    assert np.array_equal(draws16(PARTS, start, count), whole[start : start + count])


def test_the_words_are_numpys_philox():
    words = np.random.Philox(key=philox_key(PARTS), counter=[0, 0, 0, 0]).random_raw(1000)
    parts = np.stack([(words >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4)], 1).ravel()
    assert np.array_equal(draws16(PARTS, 0, 4000), parts)


def test_streams_differ_and_are_uniform():
    a, b = draws16(PARTS, 0, 200_000), draws16((8, *PARTS[1:]), 0, 200_000)
    assert (a == b).mean() < 1e-3
    assert abs((a < 6554).mean() - 0.1) < 0.003
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.01
