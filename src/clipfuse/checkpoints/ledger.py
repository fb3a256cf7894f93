"""What a job opened, and holding a job to what another one did: `clipfuse.lock`."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipfuse.checkpoints.hashes import compute_hash
from clipfuse.checkpoints.json_file import read_json
from clipfuse.checkpoints.writer import write_text
from clipfuse.errors import ConfigError, LocateError
from clipfuse.version import __version__

LOCK = "clipfuse.lock"
SCHEMA = 1
MAX_TEXT = 200
"""Characters of a commit or a hash: messages show them."""
Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Entry:
    """One model or data set: the commit that it is at, and sha256 by name of the files that were opened."""

    kind: Kind
    ref: str
    revision: str | None
    files: Mapping[str, str]


@dataclass
class Ledger:
    """What is opened while it is kept, and what may be; with `allowed` None, anything may."""

    allowed: Mapping[tuple[Kind, str], Entry] | None = None
    source: str = LOCK
    opened: dict[tuple[Kind, str], tuple[str | None, dict[str, Path]]] = field(default_factory=dict)

    def note(self, kind: Kind, ref: str, revision: str | None, files: Iterable[Path]) -> None:
        """Take down that something is opened. Raises LocateError where the lock says otherwise."""
        named = {path.name: path for path in files}
        _, before = self.opened.get((kind, ref), (None, {}))
        self.opened[kind, ref] = (revision, before | named)
        if self.allowed is None:
            return
        entry = self.entry(kind, ref)
        if entry.revision != revision:
            raise LocateError(f"{ref}: is at {revision}, {self.source} says {entry.revision}")
        for name, path in named.items():
            if name not in entry.files:
                raise LocateError(f"{ref}: {name} is not in {self.source}")
            if (found := compute_hash(path)) != entry.files[name]:
                told = f"its sha256 is {found[:12]}…, {self.source} says {entry.files[name][:12]}…"
                raise LocateError(f"{ref}: {name} is another file: {told}")

    def entry(self, kind: Kind, ref: str) -> Entry:
        """What the lock says of a reference. Raises LocateError where it says nothing."""
        found = (self.allowed or {}).get((kind, ref))
        if found is None:
            raise LocateError(f"{ref}: is not in {self.source}; without --locked a new one is written")
        return found

    def write(self, folder: Path) -> None:
        """`clipfuse.lock` in a folder; hashes that are not known yet are computed."""
        entries = [
            {"kind": k, "ref": r, "revision": revision, "files": {n: compute_hash(p) for n, p in sorted(files.items())}}
            for (k, r), (revision, files) in sorted(self.opened.items())
        ]
        tree = {"schema": SCHEMA, "clipfuse": __version__, "opened": entries}
        write_text(folder / LOCK, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")


KEPT: list[Ledger] = []
"""Those that are kept now, the innermost last. A global: what is opened is opened by many threads and rooms."""


@contextmanager
def keep_ledger(locked: str | Path | None = None) -> Iterator[Ledger]:
    """Take down what is opened inside; `locked` is a lock, or a folder with one, beside which nothing is opened.

    Raises:
        ConfigError: no such lock, or not one.
    """
    ledger = Ledger() if locked is None else Ledger(*read_lock(Path(locked)))
    KEPT.append(ledger)
    try:
        yield ledger
    finally:
        KEPT.remove(ledger)


def note_opened(kind: Kind, ref: str, revision: str | None, files: Iterable[Path] = ()) -> None:
    """Tell the ledger that is kept, if one is. Raises LocateError for what its lock does not allow."""
    if KEPT:
        KEPT[-1].note(kind, ref, revision, files)


def locked_revision(kind: Kind, ref: str) -> str | None:
    """The commit that a lock holds a reference at; None where nothing is locked. Raises LocateError if it lacks it."""
    return KEPT[-1].entry(kind, ref).revision if KEPT and KEPT[-1].allowed is not None else None


def read_lock(path: Path) -> tuple[dict[tuple[Kind, str], Entry], str]:
    """Entries of a lock by kind and reference, and what to call it in messages."""
    path = path / LOCK if path.is_dir() else path
    try:
        tree: Any = read_json(path)
        if tree["schema"] > SCHEMA:
            raise ConfigError(f"{path}: schema {tree['schema']!r:.20} is newer than this clipfuse knows ({SCHEMA})")
        found = [Entry(e["kind"], e["ref"], e["revision"], dict(e["files"])) for e in tree["opened"]]
        shown = [text for e in found for text in (e.revision or "", *e.files.values())]
        if not all(type(text) is str for e in found for text in (e.kind, e.ref, *e.files, *shown)):
            raise TypeError
        if not all(text.isprintable() and len(text) <= MAX_TEXT for text in shown):
            raise ValueError
    except FileNotFoundError:
        raise ConfigError(f"--locked {path}: no such file; run and evaluate --out write one") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"--locked {path}: is no {LOCK}") from None
    return {(entry.kind, entry.ref): entry for entry in found}, str(path)
