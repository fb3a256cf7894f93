"""A table of accuracies that fills while models are scored, on a terminal; a progress bar for everything else."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clipfuse.cli.allocator import give_back_large_blocks, keep_large_blocks
from clipfuse.cli.options import bar, duration, is_first
from clipfuse.progress import silent

if TYPE_CHECKING:
    from rich.console import RenderableType

    from clipfuse.evaluate import Tally


@contextmanager
def live(title: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """Shows how far work is; of an evaluation also what was found so far. Gone at its end.

    Of several processes that share an evaluation the first one shows its own share.
    """
    if not is_first():
        with silent(title, total, unit) as told:
            yield told
        return
    scoring = title.startswith("evaluate")
    if title.startswith(("merge", "decode", "draw")):
        with bar(title, total, unit) as told:
            yield told
        return
    keep_large_blocks()
    try:
        with (board_of if scoring and sys.stderr.isatty() else bar)(title, total, unit) as told:
            yield told
    finally:
        give_back_large_blocks()


@contextmanager
def board_of(title: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """The table, on a terminal."""
    from rich.console import Console
    from rich.live import Live

    board = Board(title, total)
    console = Console(stderr=True)
    with Live(console=console, get_renderable=board.render, refresh_per_second=4, transient=True):
        yield board.told


class Board:
    """What is known of every model on every task, as a table; unfinished figures say how far they are."""

    def __init__(self, title: str, total: int):
        self.title, self.total, self.done, self.began = title, total, 0, time.perf_counter()
        self.cells: dict[str, dict[str, Any]] = {}
        self.tasks: dict[str, None] = {}

    def told(self, count: int, on: "Tally | None" = None) -> None:
        self.done += count
        if on:
            self.tasks[on.task] = None
            self.cells.setdefault(on.model, {})[on.task] = cell(on.n, on.correct, on.images)

    def render(self) -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(header_style="bold", box=None, pad_edge=False)
        table.add_column("model", no_wrap=True)
        tasks = list(self.tasks)  # a copy: another thread adds to them
        for task in tasks:
            table.add_column(task.replace("-", "-\n"), justify="right", no_wrap=True)
        for model, found in list(self.cells.items()):
            table.add_row(model, *[found.get(task, "") for task in tasks])
        spent = time.perf_counter() - self.began
        rate = self.done / spent if spent else 0.0
        left = f", {duration((self.total - self.done) / rate)} left" if rate and self.done < self.total else ""
        line = Text(f" {self.title}: {self.done:,} of {self.total:,} img, {rate:,.0f} img/s{left}", style="dim")
        return Group(table, ProgressBar(total=max(self.total, 1), completed=self.done, width=40), line)


def cell(n: int, correct: int, images: int) -> str:
    """Accuracy in per cent; with a share of the images while not all are scored."""
    accuracy = f"{100 * (correct / n):.1f}" if n else ""
    return accuracy if n >= images else f"{accuracy} ({100 * n // images} %)"
