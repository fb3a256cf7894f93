"""What the C library's allocator is told by the command line; glibc only, silently nothing elsewhere.

It holds for the whole process: a library must not do it. Environment variables (`MALLOC_MMAP_THRESHOLD_`,
`MALLOC_TRIM_THRESHOLD_`, `GLIBC_TUNABLES`) win.
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE, KEPT = 8 << 20, 64 << 20
LARGEST, MUCH = 32 << 20, 1 << 30
"""The largest threshold that glibc takes, and free memory that activations come from again and again."""


def give_back_large_blocks() -> None:
    """Let memory of 8 MiB and more go back to the system when it is freed: for merges.

    Left alone, glibc raises that threshold to the largest block freed so far (32 MiB at most) and keeps such blocks
    in one arena per thread, where other sizes leave holes in them. Setting it also fixes the free memory that an arena
    may keep at its end, so that is set to 64 MiB.
    """
    set_thresholds(LARGE, KEPT)


def keep_large_blocks() -> None:
    """Keep memory of up to 32 MiB when it is freed: for forward passes, which ask for the same blocks again.

    Given back, each activation would come in fresh pages that the system has to clear: a fifth of the time.
    """
    set_thresholds(LARGEST, MUCH)


def set_thresholds(mmap: int, trim: int) -> None:
    if os.environ.keys() & {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}:
        return
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - only glibc has it
        libc.mallopt(M_MMAP_THRESHOLD, mmap)
        libc.mallopt(M_TRIM_THRESHOLD, trim)
    except (AttributeError, OSError, TypeError):
        pass
