"""Plug-ins: files with methods, edits and finishes of one's own. Loading one runs it; only what is named is loaded."""

import functools
import hashlib
import linecache
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import clipfuse.fusion  # noqa: F401  clipfuse's own rules come first
from clipfuse.errors import ClipfuseError, ConfigError
from clipfuse.fusion.registry import TABLES, Rule

log = logging.getLogger(__name__)

GROUP = "clipfuse.plugins"
"""Entry points of installed packages: each names a module that registers rules when it is imported."""

LOADED: dict[str, str] = {}
"""Absolute path of each file that was loaded → sha256 of what was run."""


def load_plugin(path: str | Path) -> tuple[Rule, ...]:
    """Run a Python file that registers methods, edits or finishes (see `clipfuse.plugin`), and give these rules.

    A file that was loaded already is not run again, unless it has changed: then its new rules replace the old ones.

    Raises:
        ConfigError: no such file, an error in it (with file and line), a name that is taken, or no rule in it.
    """
    file = Path(path).expanduser().resolve()
    if file.suffix != ".py":
        raise ConfigError(f"plugins: {str(path)!r} is no Python file; a plug-in is one, as in plugins=[my_rules.py]")
    try:
        source = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"plugins: {path}: cannot be read ({error.strerror})") from None
    name = f"clipfuse_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    digest = hashlib.sha256(source).hexdigest()
    if LOADED.get(str(file)) != digest or not rules_of(name):
        module = ModuleType(name)
        module.__file__ = str(file)
        with registering(name):
            run(source, file, module)
        LOADED[str(file)] = digest
    return rules_of(name)


def load_plugins(paths: Any) -> None:
    """Load what a configuration names under `plugins`. Raises ConfigError as `load_plugin`, or if it is no list."""
    if not isinstance(paths, (list, tuple)) or not all(isinstance(path, str) for path in paths):
        raise ConfigError(f"plugins: takes a list of Python files, as in plugins=[my_rules.py] (found {paths!r:.80})")
    for path in paths:
        log.info("plug-in %s: %s", path, ", ".join(rule.name for rule in load_plugin(path)))


@functools.cache
def load_installed() -> None:
    """Import the modules that installed packages name as plug-ins, once; what fails is a warning."""
    for entry in entry_points(group=GROUP):
        try:
            with registering():
                entry.load()
        except Exception as error:
            log.warning("plug-in %s of %s is left out: %s", entry.value, package(entry), one_line(error))


def package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an installed package"


def run(source: bytes, file: Path, module: ModuleType) -> None:
    """Run a plug-in's source as a module. Raises ConfigError with file and line of what is wrong."""
    linecache.checkcache(str(file))  # pydantic reads the settings' docstrings from there
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))
        if not rules_of(module.__name__):
            raise ConfigError(f"{file}: registers no method, edit, finish or after")
    except BaseException as error:
        del sys.modules[module.__name__]
        if before is not None:
            sys.modules[module.__name__] = before
        if not isinstance(error, (Exception, SystemExit)):
            raise
        raise ConfigError(where_it_failed(error, file)) from error


def where_it_failed(error: BaseException, file: Path) -> str:
    """`my_rules.py:12: NameError: …`: the line of the plug-in, and the error in one line."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{short(file)}:{error.lineno}: {error.msg}"
    if isinstance(error, ClipfuseError) and str(error).startswith(f"{file}:"):
        return str(error).replace(str(file), short(file), 1)
    return f"{last_line(error, {str(file): ''}) or short(file)}: {one_line(error)}"


def last_line(error: BaseException, files: Mapping[str, Any] = LOADED) -> str | None:
    """`file:line` of the innermost frame of an error that is in one of the files, by default in a loaded plug-in."""
    found, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in files:
            found = f"{short(Path(trace.tb_frame.f_code.co_filename))}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def short(file: Path) -> str:
    """A file as seen from the working directory, if it lies in there."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ClipfuseError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def rules_of(module: str) -> tuple[Rule, ...]:
    """The rules that a module has registered."""
    return tuple(r for table in TABLES.values() for r in table.values() if r.function.__module__ == module)


@contextmanager
def registering(module: str | None = None) -> Iterator[None]:
    """Forget the rules of `module` first; where something fails inside, everything is registered as before."""
    before = {kind: dict(table) for kind, table in TABLES.items()}
    for rule in rules_of(module) if module else ():
        del TABLES[rule.kind][rule.name]
    try:
        yield
    except BaseException:
        for kind, table in TABLES.items():
            table.clear()
            table.update(before[kind])
        raise
