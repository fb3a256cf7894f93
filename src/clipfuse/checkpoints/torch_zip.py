"""torch's zip format (since 1.6), with TorchScript: one pickle, and an uncompressed entry for each storage."""

import mmap
import re
import zipfile
from pathlib import Path
from struct import error as StructError
from struct import unpack_from

from clipfuse.checkpoints.unpickle import Pickled, Window, unpickle
from clipfuse.errors import CheckpointError

MAX_DIRECTORY = 4 << 20
PICKLE = re.compile(r"([^/]*)/data\.pkl")
LOCAL_HEADER = 30
ENCRYPTED = 1


class Mapped:
    """A mapped file for zipfile, which is to read its directory and no more."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.at = offset + (0, self.at, len(self.data))[whence]
        if self.at < 0:
            raise OSError("before its start")
        return self.at

    def read(self, count: int = -1, /) -> bytes:
        stop = len(self.data) if count < 0 else min(self.at + count, len(self.data))
        if stop - self.at > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory takes more than {MAX_DIRECTORY >> 20} MiB")
        start, self.at = self.at, max(self.at, stop)
        return self.data[start:stop]


def read_zip(data: mmap.mmap, where: Path) -> tuple[Pickled, dict[str, int]]:
    """What is pickled, and where in the file each storage begins.

    Raises:
        CheckpointError: the zip is damaged, compressed or ambiguous, or lacks values.
    """
    entries = directory(data, where)
    prefixes = [found[1] for name in entries if (found := PICKLE.fullmatch(name))]
    if len(prefixes) != 1:
        raise CheckpointError(f"{where}: is a zip with {len(prefixes)} entries */data.pkl; torch's have one")
    prefix = prefixes[0]
    spans = find_spans(data, entries, f"{prefix}/code/", where)
    order = spans.get(f"{prefix}/byteorder")
    if order is not None and data[order.start : order.stop] != b"little":
        raise CheckpointError(f"{where}: was written on a big-endian machine; little-endian files are read")
    tree = spans[f"{prefix}/data.pkl"]
    pickled = unpickle(Window(data, tree.start, tree.stop), where)
    places = {}
    for key, storage in pickled.storages.items():
        span = spans.get(f"{prefix}/data/{key}")
        if span is None or len(span) < storage.nbytes:
            found = "is missing" if span is None else f"holds {len(span):,}"
            raise CheckpointError(f"{where}: {f'data/{key[:20]}'!r} should hold {storage.nbytes:,} bytes and {found}")
        places[key] = span.start
    return pickled, places


def directory(data: mmap.mmap, where: Path) -> dict[str, zipfile.ZipInfo]:
    """All entries by name."""
    try:
        with zipfile.ZipFile(Mapped(data)) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError, StructError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{where}: is a damaged or truncated zip ({said})") from None
    entries = {entry.filename: entry for entry in listed}
    if len(entries) != len(listed):
        raise CheckpointError(f"{where}: is a zip in which a name stands twice")
    return entries


def find_spans(data: mmap.mmap, entries: dict[str, zipfile.ZipInfo], code: str, where: Path) -> dict[str, range]:
    """From where to where each entry's bytes lie; all but TorchScript's `code` must be readable in place."""
    spans = {}
    free = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].header_offset):
        at = entry.header_offset
        head = data[at : at + LOCAL_HEADER]
        if at < free or len(head) < LOCAL_HEADER or not head.startswith(b"PK\3\4"):
            raise CheckpointError(f"{where}: is a damaged zip: entry {name[:80]!r} does not begin where it should")
        if entry.flag_bits & ENCRYPTED or (entry.compress_type and not name.startswith(code)):
            what = "encrypted" if entry.flag_bits & ENCRYPTED else "compressed"
            raise CheckpointError(f"{where}: entry {name[:80]!r} is {what}; torch stores its values plainly")
        start = at + LOCAL_HEADER + sum(unpack_from("<HH", head, 26))
        free = start + entry.compress_size
        if free > len(data):
            raise CheckpointError(f"{where}: is a truncated zip: entry {name[:80]!r} reaches beyond its end")
        spans[name] = range(start, free)
    return spans
