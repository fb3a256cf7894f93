"""A table as CSV and as LaTeX."""

import csv
import io
import re
from collections.abc import Collection, Mapping, Sequence

DASH = "–"
"""In the place of a figure that does not exist."""

LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    "_": r"\_",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': "''",
    # \\ looks ahead for these, so a row must not begin with them
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "‑": "-",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "÷": r"$\div$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "∞": r"$\infty$",
    "…": r"\ldots{}",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "δ": r"$\delta$",
    "ε": r"$\varepsilon$",
    "η": r"$\eta$",
    "θ": r"$\theta$",
    "λ": r"$\lambda$",
    "μ": r"$\mu$",
    "ρ": r"$\rho$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
    "Δ": r"$\Delta$",
    "Σ": r"$\Sigma$",
    "\u00a0": "~",
    "\u202f": r"\,",
    "\u200b": "{}",
}
"""Characters that LaTeX reads otherwise, or that its text fonts lack."""

NUMBER = re.compile(r"([-+−]?\d[\d,]*(?:\.\d+)?)(?: ?%| ?± ?\d[\d.]*)?")


def csv_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """RFC 4180: commas, CRLF, quotes where needed; a dash becomes an empty field.

    Raises ValueError for a row that is not as wide as the header.
    """
    check_widths(header, rows)
    text = io.StringIO()
    csv.writer(text).writerows([header, *[["" if cell == DASH else cell for cell in row] for row in rows]])
    return text.getvalue()


def latex_text(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    *,
    published: Sequence[Sequence[str]] = (),
    bold: Sequence[Collection[int]] | None = None,
    comments: Sequence[str] = (),
    lower: Collection[str] = (),
    unranked: Collection[str] = ("±",),
) -> str:
    """A booktabs table: numbers to the right, the best of each numeric column bold.

    Args:
        header: Titles of the columns; the first names the model.
        rows: Cells as plain text; everything is escaped.
        caption: Above the table, plain text.
        published: Rows that others published: in italics below a rule, never bold.
        bold: Groups of rows, by number, that compete for the best; one group of all by default. One alone is never
            bold.
        comments: Printed nowhere, above the table.
        lower: Titles of columns whose smallest number is the best.
        unranked: Titles of columns without a best.

    Raises:
        ValueError: a row is not as wide as the header.
    """
    check_widths(header, [*rows, *published])
    numeric = [number > 0 and is_numeric([row[number] for row in (*rows, *published)]) for number in range(len(header))]
    best = set()
    for column, title in enumerate(header):
        if numeric[column] and title not in unranked:
            for competing in [range(len(rows))] if bold is None else bold:
                best |= {(row, column) for row in best_rows(rows, competing, column, title in lower)}
    body = [
        [command("textbf", cell) if (row, column) in best else escape(cell) for column, cell in enumerate(cells)]
        for row, cells in enumerate(rows)
    ]
    quoted = [[command("textit", cell) if cell else "" for cell in cells] for cells in published]
    lines = [
        "% \\usepackage{booktabs}",
        *[f"% {' '.join(comment.split())}" for comment in comments],
        "\\begin{table}",
        "  \\centering",
        *([f"  \\caption{{{escape(caption)}}}"] if caption else []),
        f"  \\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}",
        "    \\toprule",
        line([escape(title) for title in header]),
        "    \\midrule",
        *map(line, body),
        *(["    \\midrule"] if body and quoted else []),
        *map(line, quoted),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Plain text as LaTeX that prints it."""
    apart = re.sub(r"-(?=-)", "-\u200b", text.replace("\n", " "))  # -- would become a dash
    return "".join(LATEX.get(character, character) for character in apart)


def command(name: str, text: str) -> str:
    return f"\\{name}{{{escape(text)}}}"


def line(cells: Sequence[str]) -> str:
    return "    " + " & ".join(cells) + r" \\"


def value(cell: str) -> float | None:
    """The number that a cell begins with (`71.3`, `71.3 ± 0.2`, `1,024`, `96 %`); None if it is no number."""
    match = NUMBER.fullmatch(cell.strip())
    return float(match[1].replace(",", "").replace("−", "-")) if match else None


def is_numeric(cells: Sequence[str]) -> bool:
    """Whether a column holds numbers and nothing else but gaps."""
    filled = [cell for cell in cells if cell not in ("", DASH)]
    return bool(filled) and all(value(cell) is not None for cell in filled)


def best_rows(rows: Sequence[Sequence[str]], competing: Collection[int], column: int, lower: bool) -> list[int]:
    """Which rows share the best number of a column, as printed; none where fewer than two have one."""
    values = {row: number for row in competing if (number := value(rows[row][column])) is not None}
    if len(values) < 2:
        return []
    best = (min if lower else max)(values.values())
    return [row for row, number in values.items() if number == best]


def check_widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {row[0] if row else ''!r} has {len(row)} cells, the header {len(header)}")
