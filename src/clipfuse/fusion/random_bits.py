"""Random numbers that depend on where they are used and on nothing else: Philox 4x64-10, counter-based."""

import hashlib
import threading

import numpy as np
import numpy.typing as npt

PER_BLOCK = 16
"""16-bit draws in one Philox block (four 64-bit words)."""

_generators = threading.local()


def philox_key(parts: tuple[object, ...]) -> tuple[int, int]:
    """128 bits of key from what the draws belong to."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def draws16(parts: tuple[object, ...], start: int, count: int) -> npt.NDArray[np.uint16]:
    """Draws `start` to `start + count` of the stream keyed by `parts`, (count,), uniform in [0, 65536).

    Draw i is 16-bit part i mod 4 (lowest first) of 64-bit word (i div 4) mod 4 of Philox block i div 16; block b is
    NumPy's Philox with counter b, which steps before it answers.
    """
    first, skip = divmod(start, PER_BLOCK)
    words = -(-(skip + count) // 4)
    if not hasattr(_generators, "bits"):
        _generators.bits = np.random.Philox(0)
        _generators.generator = np.random.Generator(_generators.bits)
    key = philox_key(parts)
    _generators.bits.state = {
        "bit_generator": "Philox",
        "state": {"counter": np.array([first, 0, 0, 0], np.uint64), "key": np.array(key, np.uint64)},
        "buffer": np.zeros(4, np.uint64),
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
    raw = _generators.generator.integers(0, 2**64 - 1, words, dtype=np.uint64, endpoint=True)
    return raw.astype("<u8", copy=False).view("<u2")[skip : skip + count]
