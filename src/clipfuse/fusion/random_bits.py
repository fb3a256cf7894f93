"""Random numbers that depend on where they are used and on nothing else: Philox 4x64-10, counter-based.

On the CPU the words are NumPy's; elsewhere torch computes the same words in int64 arithmetic, bit for bit.
"""

import hashlib
import threading

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipfuse.shapes import Float, Int

PER_BLOCK = 16
"""16-bit draws in one Philox block (four 64-bit words)."""

ROUNDS = 10
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
"""Of counter words 0 and 2 in a round."""
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
"""What the two key words grow by after a round."""
LOW = 0xFFFFFFFF

_philox = threading.local()


def philox_key(parts: tuple[object, ...]) -> tuple[int, int]:
    """128 bits of key from what the draws belong to."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def keep_at_random(
    parts: tuple[object, ...], start: int, drop: int | Float[Tensor, "count"], out: Float[Tensor, "count"]
) -> int:
    """Fill `out` with 1 where the draw is ≥ `drop` (in 1/65536, < 1) and with 0 elsewhere; how many are 1.

    Entries of `out` get draws `start`, `start` + 1, … of the stream keyed by `parts`, whatever its device.
    """
    if out.device.type == "cpu":
        kept = numpy_draws(parts, start, len(out)) >= (drop.numpy() if isinstance(drop, Tensor) else drop)
        np.copyto(out.numpy(), kept)
        return int(np.count_nonzero(kept))
    chosen = torch_draws(parts, start, len(out), out.device) >= drop
    out.copy_(chosen)
    return int(chosen.count_nonzero())


def numpy_draws(parts: tuple[object, ...], start: int, count: int) -> npt.NDArray[np.uint16]:
    """Draws `start` to `start + count` of the stream keyed by `parts`, uniform in 0 … 65535.

    Draw i is 16-bit part i mod 4 (lowest first) of 64-bit word (i div 4) mod 4 of Philox block i div 16; block b is
    NumPy's Philox with counter b, which steps before it answers. Other threads run meanwhile.
    """
    first, skip = divmod(start, PER_BLOCK)
    if not hasattr(_philox, "bits"):
        _philox.bits = np.random.Philox(0)
    _philox.bits.state = {
        "bit_generator": "Philox",
        "state": {"counter": np.array([first, 0, 0, 0], np.uint64), "key": np.array(philox_key(parts), np.uint64)},
        "buffer": np.zeros(4, np.uint64),
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
    words = _philox.bits.random_raw(-(-(skip + count) // 4))
    return words.astype("<u8", copy=False).view("<u2")[skip : skip + count]


def torch_draws(parts: tuple[object, ...], start: int, count: int, device: torch.device | str) -> Int[Tensor, "count"]:
    """The same draws, computed on `device`."""
    first, skip = divmod(start, PER_BLOCK)
    words = torch_words(philox_key(parts), first, -(-(skip + count) // 4), device)
    quarters = (words[:, None] >> torch.arange(0, 64, 16, device=device)) & 0xFFFF
    return quarters.flatten()[skip : skip + count]


def torch_words(key: tuple[int, int], first: int, count: int, device: torch.device | str) -> Int[Tensor, "count"]:
    """The first `count` 64-bit words from block `first` on, as int64 of the same bits, computed on `device`.

    Source: Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
    """
    blocks = torch.arange(first + 1, first + 1 + -(-count // 4), device=device)
    c0, c1, c2, c3 = blocks, *(torch.zeros_like(blocks) for _ in range(3))
    for turn in range(ROUNDS):
        k0, k1 = (signed(word + turn * step) for word, step in zip(key, WEYL, strict=True))
        high0, low0 = multiply(c0, MULTIPLIERS[0])
        high2, low2 = multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
    return torch.stack([c0, c1, c2, c3], 1).flatten()[:count]


def multiply(words: Int[Tensor, "count"], factor: int) -> tuple[Int[Tensor, "count"], Int[Tensor, "count"]]:
    """High and low 64 bits of words · factor, all unsigned in int64 whose products wrap."""
    a0, a1, b0, b1 = words & LOW, (words >> 32) & LOW, factor & LOW, factor >> 32
    cross0, cross1 = a0 * b1, a1 * b0
    carry = ((a0 * b0 >> 32) & LOW) + (cross0 & LOW) + (cross1 & LOW)
    high = a1 * b1 + ((cross0 >> 32) & LOW) + ((cross1 >> 32) & LOW) + (carry >> 32)
    return high, words * signed(factor)


def signed(word: int) -> int:
    """The int64 with the low 64 bits of `word`."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word
