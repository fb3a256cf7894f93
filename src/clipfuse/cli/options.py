"""What verbs share: options, `key=value` words, progress, and output."""

import functools
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from clipfuse.config.fusionbench import translate
from clipfuse.config.overrides import apply_overrides
from clipfuse.config.presets import load_preset
from clipfuse.errors import ConfigError, unknown

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILE.yaml] [KEY=VALUE]...", help="A run's YAML file or preset, then method=, modelpool=, …"
    ),
]
Published = Annotated[bool, typer.Option("--published", help="Print published figures beside those measured here.")]
Json = Annotated[bool, typer.Option("--json", help="Print data as JSON on standard output.")]

OPTIONS: dict[str, tuple[Any, Any]] = {
    "out": (str | None, typer.Option("--out", "-o", help="Folder to write; it must be empty or new.")),
    "overwrite": (bool, typer.Option("--overwrite", help="Replace what clipfuse left there before.")),
    "device": (
        str | None,
        typer.Option(
            help="Forward passes: auto, cpu, cuda, cuda:1, mps. Merges: the CPU, unless a CUDA device is named."
        ),
    ),
    "dtype": (str | None, typer.Option(help="Of the weights that are written: float32, float16, bfloat16.")),
    "precision": (str | None, typer.Option(help="Of forward passes: float32, bfloat16, float16; tf32 on CUDA.")),
    "batch_size": (int | None, typer.Option(min=1, help="Images a forward pass; automatic by default.")),
    "seed": (int | None, typer.Option(help="Of all random choices: edits, carved splits, --limit, training.")),
    "limit": (int | None, typer.Option(min=1, help="Score only so many images a split, a seeded choice.")),
    "memory": (str | None, typer.Option(help="Most that leaves in work may take together, as in 2GB.")),
    "plugin": (
        list[str] | None,
        typer.Option("--plugin", metavar="FILE.py", help="Run a file that has methods of your own; may be repeated."),
    ),
    "locked": (
        str | None,
        typer.Option("--locked", metavar="FILE", help="Open only what this clipfuse.lock (or a folder's) names."),
    ),
    "keep_factors": (
        bool,
        typer.Option("--keep-factors", help="Keep decompositions on disk: the same experts are not decomposed again."),
    ),
    "verbose": (bool, typer.Option("--verbose", "-v", help="Say more of what is done.")),
}
"""The options that mean the same in every verb: name → type and how typer shows it."""

Given = dict[str, Any]
"""Options that were given, by name."""


def options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the shared options `names`; it receives those that were given as its keyword `given`."""

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def verb(**values: Any) -> None:
            found = {name: values.pop(name) for name in names}
            show_log(bool(found.pop("verbose", False)))
            function(
                **values,
                given={name: value for name, value in found.items() if value not in (None, []) and value is not False},
            )

        own = [p for p in inspect.signature(function).parameters.values() if p.name != "given"]
        shared = []
        for name in names:
            kind, shown = OPTIONS[name]
            default = False if kind is bool else None
            shared.append(
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown]
                )
            )
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        verb.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        verb.__annotations__ = {p.name: p.annotation for p in [*own, *shared]}
        return verb

    return wrap


def tree_of(words: Sequence[str] | None, given: Mapping[str, Any], group: str = "run") -> dict[str, Any]:
    """The tree that words and options mean, over a file of a group; FusionBench's words are told on standard error.

    Raises:
        ConfigError: more than one file, unknown presets, keys that lead nowhere.
    """
    words = list(words or ())
    files = [word for word in words if "=" not in word and not word.startswith("~")]
    if len(files) > 1:
        raise ConfigError(f"{files[1]!r}: one FILE.yaml is taken; everything else has the form key=value")
    tree = load_preset(group, files[0]) if files else {}
    tree = apply_overrides(tree, [word for word in words if word not in files])
    tree, notes = translate(tree)
    for note in notes:
        say(f"note: {note}")
    tree |= {key: value for key, value in given.items() if key != "plugin"}
    named = tree.get("plugins", [])
    if isinstance(named, list):  # anything else is refused by those who load them
        for plugin in named if files else ():
            say(f"note: {files[0]} names a plug-in, which is run: {plugin}")
        tree |= {"plugins": [*named, *given.get("plugin", [])]} if named or "plugin" in given else {}
    return tree


def load_given(given: dict[str, Any]) -> None:
    """Load the plug-ins that were given as options, in verbs that have no tree which could name some."""
    if named := given.pop("plugin", None):
        from clipfuse.fusion.loading import load_plugins

        load_plugins(named)


def take(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    """`tree`, if it has no other keys than `keys`. Raises ConfigError with the nearest known key."""
    for key in tree:
        if key not in keys:
            raise ConfigError(unknown("key", key, keys))
    return tree


def base_in(words: Sequence[str] | None) -> str | None:
    """The `base=` of verbs that take no other word. Raises ConfigError."""
    base = take(tree_of(words, {}), "base").get("base")
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"base: takes a path or a hub id (found {base!r})")
    return base


def need(tree: Mapping[str, Any], key: str, example: str) -> Any:
    """A key that must be there. Raises ConfigError with an example."""
    if tree.get(key) is None:
        raise ConfigError(f"{key}: is required, as in {key}={example}")
    return tree[key]


def is_first() -> bool:
    """Whether this is the process that speaks, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """A line for the person at the terminal: standard error."""
    print(text, file=sys.stderr)


class Stderr:
    """Standard error as it is at the time of writing: a live table may stand in for it."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def show_log(verbose: bool) -> None:
    """Warnings of clipfuse go to standard error, with --verbose everything that it logs."""
    handler = logging.StreamHandler(Stderr())
    handler.setLevel(logging.INFO if verbose else logging.WARNING if is_first() else logging.ERROR)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root = logging.getLogger("clipfuse")
    root.handlers, root.propagate = [handler], False
    root.setLevel(logging.INFO)


@contextmanager
def factors_kept(given: Given) -> Iterator[None]:
    """With --keep-factors, decompositions are kept in the cache, by content."""
    if not given.pop("keep_factors", False):
        yield
        return
    from clipfuse.cache import cache_folder
    from clipfuse.stats.factor_cache import keep_factors

    with keep_factors(cache_folder("spectra")) as store:
        yield
    say(f"decompositions: {store.made} made, {store.reused} from the cache")


def print_json(data: Any) -> None:
    """Data on standard output."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


@contextmanager
def bar(title: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal, nothing elsewhere; words that it is told stand behind it."""
    from tqdm import tqdm

    shown = {"unit": unit, "unit_scale": unit == "B", "unit_divisor": 1024, "leave": False}
    with tqdm(total=total, desc=title, disable=not sys.stderr.isatty(), file=sys.stderr, **shown) as progress:

        def told(count: int, on: Any = None) -> None:
            if on == "goes on":  # what was done before says nothing about the speed
                progress.initial = progress.n = count
                return
            if isinstance(on, str):
                progress.set_postfix_str(on, refresh=False)
            progress.update(count)

        yield told


def megabytes(count: int | None) -> str:
    """Bytes for people, in MB of 10⁶."""
    return "?" if count is None else f"{count / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """An estimate of a time for people: `about 1.5 min`, two digits of it."""
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 1.5 * size:
            return f"about {float(f'{seconds / size:.2g}'):g} {unit}"
    return "about a second" if seconds >= 0.5 else "less than a second"
