"""What the benchmarks measure with: whole processes, their memory, the floor, the machine. Imports no torch."""

import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

CHUNK = 16 << 20
"""Bytes that a thread of the floor reads or writes at a time."""
BUFFER = 256 << 10
"""Bytes of a thread's buffer: fits the second-level cache, so that the copy out of the page cache is all it costs."""
POLL = 0.002
"""Seconds between two looks at a process's memory."""


@dataclass(frozen=True)
class Run:
    """One process from start to end."""

    seconds: float
    output: str
    anonymous: int | None = None
    """Peak of RssAnon, bytes; None where there is no /proc or nobody looked."""
    resident: int | None = None
    """Peak of all resident memory, mapped files too, bytes."""


class ProcessError(RuntimeError):
    """A measured process failed; the message ends with what it said last."""


def run_process(
    command: Sequence[str], watch: bool = False, env: Mapping[str, str] | None = None, limit: float | None = None
) -> Run:
    """Run a command; with `watch`, look at its memory every 2 ms (which costs a few per cent of a core).

    Raises:
        ProcessError: it ended with another status than 0, or was ended after `limit` seconds.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **(env or {})})
        timer = threading.Timer(limit, process.kill) if limit else None
        if timer:
            timer.start()
        peaks = watch_memory(process) if watch else (None, None)
        status = process.wait()
        seconds = time.perf_counter() - began
        if timer:
            timer.cancel()
            if status < 0 and limit and seconds >= limit:
                raise ProcessError(f"given up after {limit:.0f} s")
        for stream in (out, err):
            stream.seek(0)
        if status:
            said = (err.read() + out.read()).decode(errors="replace")
            raise ProcessError(f"{' '.join(map(str, command))}: status {status}: …{said[-1500:]}")
        return Run(seconds, out.read().decode(errors="replace"), *peaks)


def watch_memory(process: subprocess.Popen[bytes]) -> tuple[int | None, int | None]:
    """Peaks of RssAnon and of resident memory until a process ends, bytes; None where there is no /proc."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return None, None
    anonymous = resident = 0
    while process.poll() is None:
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            anonymous = max(anonymous, kilobytes(fields.get("RssAnon")))
            resident = max(resident, kilobytes(fields.get("VmHWM")))
        except OSError:  # it has just ended
            break
        time.sleep(POLL)
    return anonymous, resident


def kilobytes(field: str | None) -> int:
    """`"  1234 kB"` → bytes."""
    return int(field.split()[0]) * 1024 if field else 0


def import_torch(watch: bool = False) -> Run:
    """A process that does nothing but `import torch`."""
    return run_process([sys.executable, "-c", "import torch"], watch)


def floor(inputs: Sequence[Path], scratch: Path, size: int, threads: int) -> tuple[float, float]:
    """Seconds to read all inputs once from the page cache, and to write `size` bytes to a new file once.

    Plain system calls into and out of a small buffer, many threads, no arithmetic: what nobody who reads and writes
    files can undercut. The file is not synced, as no merger syncs its result.
    """
    local = threading.local()

    def buffer() -> memoryview:
        if not hasattr(local, "buffer"):
            local.buffer = memoryview(bytearray(BUFFER))
        return local.buffer

    def read(path: Path, start: int, stop: int) -> None:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while start < stop and (count := file.readinto(buffer()[: min(BUFFER, stop - start)])):
                start += count

    def write(path: Path, start: int, stop: int) -> None:
        with path.open("rb+", buffering=0) as file:
            file.seek(start)
            while start < stop:
                start += file.write(buffer()[: min(BUFFER, stop - start)])

    def timed(work: Callable[[Path, int, int], None], files: Sequence[tuple[Path, int]]) -> float:
        parts = [(path, at, min(at + CHUNK, end)) for path, end in files for at in range(0, end, CHUNK)]
        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(work, *part) for part in parts]:
                done.result()
        return time.perf_counter() - began

    target = scratch / "floor.bin"
    try:
        seconds_reading = timed(read, [(path, path.stat().st_size) for path in inputs])
        target.touch()
        return seconds_reading, timed(write, [(target, size)])
    finally:
        target.unlink(missing_ok=True)


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """Cores, processor, system, and the versions that matter, in one line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), model)
    from importlib.metadata import version

    found = f"{cores()} cores, {model}, {platform.system()}, Python {platform.python_version()}"
    return f"{found}, torch {version('torch')}, clipfuse {version('clipfuse')}, load {load()}"


def available_memory() -> int | None:
    """Bytes that a new process may take without swapping; None where there is no /proc."""
    told = Path("/proc/meminfo")
    if not told.exists():
        return None
    return kilobytes(dict(line.split(":", 1) for line in told.read_text().splitlines()).get("MemAvailable"))


def load() -> str:
    """Load average of the last minute: on an idle machine about 0."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range, `1.31 (1.20-1.52)`."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
