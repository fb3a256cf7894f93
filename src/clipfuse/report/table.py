"""A table of texts, for the terminal, Markdown, CSV and LaTeX."""

from dataclasses import dataclass, field

from clipfuse.report.formats import DASH, csv_text, latex_text
from clipfuse.report.published import column_title

__all__ = ["DASH", "Table"]


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the model. `notes` are printed below."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    published: list[list[str]] = field(default_factory=list)
    """Rows that others published."""
    title: str = ""
    ranked: tuple[tuple[int, ...], ...] | None = None
    """Groups of rows, by number, in each of which the best of a column is bold in LaTeX; None is one group of all."""

    def markdown(self) -> str:
        """GitHub's table, right-aligned but for the first column; published rows in italics."""
        rule = [":--", *["--:"] * (len(self.header) - 1)]
        quoted = [[f"*{cell}*" if cell else "" for cell in row] for row in self.published]
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.header, rule, *self.rows, *quoted)]
        title = [f"**{self.title}**", ""] if self.title else []
        return "\n".join([*title, *lines, "", *self.notes, ""])

    def csv(self) -> str:
        """As RFC 4180 has it, published rows below."""
        return csv_text(self.header, [*self.rows, *self.published])

    def latex(self) -> str:
        """A booktabs table with the field's titles of tasks, the best of each column bold, the notes as comments."""
        header = [column_title(name) for name in self.header]
        apart = ["Bold: the best of the models under one condition."] if self.ranked and len(self.ranked) > 1 else []
        comments = [*self.notes, *apart]
        return latex_text(header, self.rows, self.title, published=self.published, bold=self.ranked, comments=comments)

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
        for row in self.published:
            table.add_row(*row, style="italic dim")
        columns = zip(heads, *self.rows, *self.published, strict=True)
        needed = sum(max(len(line) for cell in column for line in cell.split("\n")) + 2 for column in columns)
        console = Console(highlight=False)
        if console.width < needed:
            console = Console(width=needed, highlight=False)
        if self.title:
            console.print(f"\n{self.title}", style="bold")
        console.print(table)
        for note in self.notes:
            console.print(note, style="dim", soft_wrap=True)
