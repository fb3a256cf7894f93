"""One table of results, for the terminal and for Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from clipfuse.evaluate.record import Record

DASH = "–"


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the model. `notes` are printed below."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]

    def markdown(self) -> str:
        """GitHub's table, right-aligned but for the first column."""
        rule = [":--", *["--:"] * (len(self.header) - 1)]
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.header, rule, *self.rows)]
        return "\n".join([*lines, "", *self.notes, ""])

    def print(self) -> None:
        """To the terminal."""
        from rich.console import Console
        from rich.table import Table as RichTable

        table = RichTable(header_style="bold", box=None, pad_edge=False)
        heads = [name.replace("-", "-\n") for name in self.header]
        for number, name in enumerate(heads):
            table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        columns = zip(heads, *self.rows, strict=True)
        needed = sum(max(len(line) for cell in column for line in cell.split("\n")) + 2 for column in columns)
        console = Console(highlight=False)
        if console.width < needed:
            console = Console(width=needed, highlight=False)
        console.print(table)
        for note in self.notes:
            console.print(note, style="dim", soft_wrap=True)


def results_table(records: Sequence[Record], remarks: Sequence[str] = ()) -> Table:
    """Accuracy in per cent, models × tasks, with the mean, its 95 % half-width, the normalised mean, and data seen."""
    tasks = list(dict.fromkeys(record.task for record in records))
    models = list(dict.fromkeys(record.model for record in records))
    cells = {(record.model, record.task): record for record in records}
    header = ["model", *tasks, "average", "±", "norm.", "data seen"]
    rows = []
    for model in models:
        found = [cells.get((model, task)) for task in tasks]
        mine = [record for record in found if record]
        whole = len(mine) == len(tasks)
        shares = [record.normalised for record in mine if record.normalised is not None]
        rows.append(
            [
                model,
                *[f"{100 * record.accuracy:.1f}" if record else DASH for record in found],
                f"{100 * average(mine):.1f}" if whole else DASH,
                f"{100 * half_width(mine):.1f}" if whole else DASH,
                f"{100 * sum(shares) / len(shares):.1f}" if whole and len(shares) == len(tasks) else DASH,
                ", ".join(mine[0].uses) or "none" if mine[0].role == "merged" else "",
            ]
        )
    return Table(header, rows, [*notes(records), *remarks])


def average(records: Sequence[Record]) -> float:
    """Mean of the tasks' accuracies."""
    return sum(record.accuracy for record in records) / len(records)


def half_width(records: Sequence[Record]) -> float:
    """Half of the 95 % interval of the mean, from the tasks' Wilson intervals (images are independent)."""
    return sum(((r.interval[1] - r.interval[0]) / 2) ** 2 for r in records) ** 0.5 / len(records)


def notes(records: Sequence[Record]) -> list[str]:
    """What a reader must know: which images, how many, and what the tiny suite is."""
    splits = sorted({record.split for record in records})
    sizes = ", ".join(dict.fromkeys(f"{record.task} {record.n}" for record in records))
    found = [
        f"Top-1 accuracy in per cent on {', '.join(splits)} images ({sizes}); ± is half of the average's 95 % interval."
    ]
    if any(record.normalised is not None for record in records):
        found.append("norm.: mean over tasks of accuracy ÷ that of the task's own expert, in per cent.")
    if any(record.limit is not None for record in records):
        found.append("With --limit only a seeded choice of the images is scored.")
    if any(record.task.startswith("tiny-") for record in records):
        found.append(
            "Tiny suite: a small CLIP on small generated tasks; its figures say nothing about real CLIP models."
        )
    return found
