"""torch's format before 1.6: five pickles one after another, then the storages' values."""

import mmap
from pathlib import Path

from clipfuse.checkpoints.unpickle import Pickled, Window, unpickle
from clipfuse.errors import CheckpointError

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


def read_legacy(data: mmap.mmap, where: Path) -> tuple[Pickled, dict[str, int]]:
    """What is pickled, and where in the file each storage begins.

    Raises:
        CheckpointError: it is not torch's, damaged, truncated, or from a big-endian machine.
    """
    size = len(data)
    window = Window(data, 0, size)
    if unpickle(window, where).value != MAGIC:
        raise CheckpointError(f"{where}: is a pickle, but none of torch's; takes what torch.save wrote")
    version, machine = unpickle(window, where).value, unpickle(window, where).value
    if version != VERSION or type(machine) is not dict or machine.get("little_endian") is not True:
        raise CheckpointError(f"{where}: is of another version of torch's old format, or from a big-endian machine")
    pickled = unpickle(window, where)
    keys = unpickle(window, where).value
    if type(keys) is not list or not all(type(key) is str for key in keys) or set(keys) != set(pickled.storages):
        raise CheckpointError(f"{where}: is damaged: it does not list the storages that its tensors are in")
    places = {}
    at = window.at
    for key in keys:
        storage = pickled.storages[key]
        if at + 8 + storage.nbytes > size:
            raise CheckpointError(f"{where}: is truncated: it ends in the middle of its values")
        if int.from_bytes(data[at : at + 8], "little") != storage.numel:
            raise CheckpointError(f"{where}: is damaged: a storage's size is not what its tensors say")
        places[key] = at + 8
        at += 8 + storage.nbytes
    return pickled, places
