"""What verbs share: their options, `key=value` words, progress, and output."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from clipfuse.config import apply_overrides, load_preset
from clipfuse.config.fusionbench import translate
from clipfuse.errors import ConfigError

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILE.yaml] [KEY=VALUE]...", help="A run's YAML file or preset, then method=, modelpool=, …"
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps: for forward passes.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16, bfloat16: of the merged weights.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images a forward pass.")]
Seed = Annotated[int | None, typer.Option(help="For random edits, carved splits and --limit.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Score only so many images a split, a seeded choice.")]
Out = Annotated[str | None, typer.Option("--out", "-o", help="Folder to write; it must be empty or new.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what clipfuse left there before.")]
Json = Annotated[bool, typer.Option("--json", help="Print data as JSON on standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more of what is done.")]


def tree_of(words: Sequence[str] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that words and options mean; FusionBench's words are told on standard error.

    Raises:
        ConfigError: more than one file, unknown presets, keys that lead nowhere.
    """
    words = list(words or ())
    files = [word for word in words if "=" not in word and not word.startswith("~")]
    if len(files) > 1:
        raise ConfigError(f"{files[1]!r}: one FILE.yaml is taken; everything else has the form key=value")
    tree = load_preset("run", files[0]) if files else {}
    tree = apply_overrides(tree, [word for word in words if word not in files])
    tree, notes = translate(tree)
    for note in notes:
        say(f"note: {note}")
    return tree | {key: value for key, value in given.items() if value is not None and value is not False}


def take(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    """`tree`, if it has no other keys than `keys`. Raises ConfigError with the nearest known key."""
    from clipfuse.errors import unknown

    for key in tree:
        if key not in keys:
            raise ConfigError(unknown("key", key, keys))
    return tree


def need(tree: Mapping[str, Any], key: str, example: str) -> Any:
    """A key that must be there. Raises ConfigError with an example."""
    if tree.get(key) is None:
        raise ConfigError(f"{key}: is required, as in {key}={example}")
    return tree[key]


def say(text: str) -> None:
    """A line for the person at the terminal: standard error."""
    print(text, file=sys.stderr)


def show_log(verbose: bool) -> None:
    """Warnings of clipfuse go to standard error, with --verbose everything that it logs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.INFO if verbose else logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root = logging.getLogger("clipfuse")
    root.handlers, root.propagate = [handler], False
    root.setLevel(logging.INFO)


def print_json(data: Any) -> None:
    """Data on standard output."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str if isinstance(data, Path) else list))


@contextmanager
def bar(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    shown = {"unit": unit, "unit_scale": unit == "B", "unit_divisor": 1024, "leave": False}
    with tqdm(total=total, desc=title, disable=not sys.stderr.isatty(), file=sys.stderr, **shown) as progress:
        yield lambda count: (progress.update(count), None)[1]


def megabytes(count: int | None) -> str:
    """Bytes for people, in MB of 10⁶."""
    return "?" if count is None else f"{count / 1e6:,.1f} MB"
