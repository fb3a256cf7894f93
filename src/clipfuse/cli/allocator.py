"""What the C library's allocator is told at the start of the command line."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE, KEPT = 8 << 20, 64 << 20


def give_back_large_blocks() -> None:
    """Let memory of 8 MiB and more go back to the system when it is freed; glibc only, silently nothing elsewhere.

    Left alone, glibc raises that threshold to the largest block freed so far (32 MiB at most) and keeps such blocks
    in one arena per thread, where other sizes leave holes in them. Setting it also fixes the free memory that an arena
    may keep at its end, so that is set to 64 MiB. It holds for the whole process: a library must not do it.
    Environment variables (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`, `GLIBC_TUNABLES`) win.
    """
    if os.environ.keys() & {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}:
        return
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - only glibc has it
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
    except (AttributeError, OSError, TypeError):
        pass
