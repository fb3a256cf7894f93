"""The errors that a user can cause: one family, each one line that says where, what was found, and what it takes.

The command line prints them without a traceback and leaves with status 2; anything else is our bug.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class ClipfuseError(Exception):
    """Root of the family."""


class ConfigError(ClipfuseError):
    """A YAML file, an override or an argument says something that it may not."""


class LocateError(ClipfuseError):
    """A path or hub id does not lead to the files that are needed."""


class CheckpointError(ClipfuseError):
    """A file does not hold the tensors that it should."""


class PoolError(ClipfuseError):
    """The members of a pool do not fit together, or not to what is asked of them."""


class TaskError(ClipfuseError):
    """A task, its images or its labels are not what its description says."""


class ModelError(ClipfuseError):
    """A model does not fit to the weights, the head or the processor that it is to work with."""


class OutputError(ClipfuseError):
    """A result cannot be written where it should go."""


def unknown(what: str, name: str, known: Iterable[str], limit: int = 12) -> str:
    """`unknown method 'tis_merging'; did you mean 'ties_merging'? Known: magmax, ties_merging, …`."""
    names = sorted(known)
    inside = sorted((n for n in names if name.lower() in n.lower()), key=lambda n: n.lower().index(name.lower()))
    close = (
        get_close_matches(name, names, n=1)
        or get_close_matches(name.lower(), inside or names, n=1, cutoff=0.5)
        or (inside[:1] if len(name) > 1 else [])
    )
    hint = f"; did you mean {close[0]!r}?" if close else "."
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"unknown {what} {name!r}{hint} Known: {', '.join(names[:limit])}{more}"
