"""CSV that a reader gets back, LaTeX that has the right structure and prints the characters that were given."""

import csv
import io
import re
import string

import pytest

from clipfuse.report.formats import DASH, LATEX, best_rows, csv_text, escape, latex_text, value
from clipfuse.report.table import Table

HEADER = ["model", "SUN397", "Cars", "average", "±", "data seen"]
ROWS = [
    ["pre-trained", "63.2", "59.8", "61.5", "0.4", ""],
    ["ties_merging λ=0.3", "60.1", "60.1", "61.5", "0.3", "none"],
    ["a, \"b\" & c_{d} 100%", "9.9", DASH, DASH, DASH, "val_images, val_labels"],
]  # fmt: skip
PUBLISHED = [["TIES-Merging λ=.3", "99.9", DASH, "99.9", "", ""]]


def test_csv_comes_back_with_gaps_for_dashes():
    text = csv_text(HEADER, ROWS)
    found = list(csv.reader(io.StringIO(text, newline="")))
    assert found == [HEADER, *[[cell.replace(DASH, "") for cell in row] for row in ROWS]]
    assert text.count("\r\n") == text.count("\n") == 4
    assert '"a, ""b"" & c_{d} 100%",9.9,,,,"val_images, val_labels"\r\n' in text


def test_a_ragged_row_is_refused():
    with pytest.raises(ValueError, match=r"row 'x' has 2 cells, the header 6"):
        csv_text(HEADER, [["x", "1"]])
    with pytest.raises(ValueError, match="cells"):
        latex_text(HEADER, ROWS, published=[["x"] * 7])


def bare(latex: str) -> str:
    """LaTeX without commands, escapes and mathematics: what is left must not be special."""
    return re.sub(r"\\[a-zA-Z]+(?:\{\})?|\\[_&%#${},]|\$[^$]*\$|\{[][*]\}|\{\}", "", latex)


def test_escaped_characters_leave_nothing_special():
    for text in (string.printable, "".join(LATEX), "".join(LATEX) * 2, "\\\\_$", "{{}}", "a--b---c"):
        assert not set(bare(escape(text))) & set('_&%#${}~^\\<>|`"[*\n') - {"~"}, escape(text)
        assert (bare(escape(text)).count("~"), "--" in escape(text)) == (text.count("\u00a0"), False)
    plain = string.ascii_letters + string.digits + " .,:;!?()/+-='@é"
    assert escape(plain) == plain


def test_each_character_is_what_latex_prints_it_with():
    assert escape(r"a_b & 5% #1 $x {y} ~z^\ ") == (
        r"a\_b \& 5\% \#1 \$x \{y\} \textasciitilde{}z\textasciicircum{}\textbackslash{} "
    )
    assert escape("λ=.3 ± –") == r"$\lambda$=.3 $\pm$ \textendash{}"
    assert escape("E‑WEMoE --limit") == "E-WEMoE -{}-limit"
    assert escape("[1]*\ntwo") == "{[}1{]}{*} two"


def table(latex: str) -> tuple[str, list[list[str]]]:
    """Column specification, and cells of all rows, by a reading of our own."""
    spec = re.search(r"\\begin\{tabular\}\{([lr]+)\}", latex)
    assert spec
    rows = [line.strip()[:-3] for line in latex.split("\n") if line.endswith(r" \\")]
    return spec[1], [[cell.strip() for cell in re.split(r"(?<!\\)&", row)] for row in rows]


def test_structure():
    latex = latex_text(HEADER, ROWS, "Eight tasks, 100 % & more", published=PUBLISHED)
    spec, rows = table(latex)
    assert spec == "lrrrrl"
    assert len(rows) == 1 + len(ROWS) + len(PUBLISHED)
    assert {len(row) for row in rows} == {len(HEADER)}
    depth = 0
    for character in re.sub(r"\\[{}\\]", "", latex):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    opened, closed = (re.findall(rf"\\{word}\{{(\w+)\}}", latex) for word in ("begin", "end"))
    assert opened == closed[::-1] == ["table", "tabular"]
    rules = re.findall(r"\\(?:top|mid|bottom)rule", latex)
    assert rules == ["\\toprule", "\\midrule", "\\midrule", "\\bottomrule"]
    assert "\\caption{Eight tasks, 100 \\% \\& more}" in latex
    assert latex.index(rules[-1]) > latex.index("TIES-Merging") > latex.rindex("\\midrule")


def test_bold_is_for_the_best_of_our_rows():
    _, rows = table(latex_text(HEADER, ROWS, published=PUBLISHED))
    assert rows[1] == ["pre-trained", r"\textbf{63.2}", "59.8", r"\textbf{61.5}", "0.4", ""]
    assert rows[2][1:] == ["60.1", r"\textbf{60.1}", r"\textbf{61.5}", "0.3", "none"]
    assert rows[4] == [
        r"\textit{TIES-Merging $\lambda$=.3}",
        r"\textit{99.9}",
        r"\textit{\textendash{}}",
        r"\textit{99.9}",
        "",
        "",
    ]


def test_which_rows_compete_and_which_way():
    _, rows = table(latex_text(HEADER, ROWS, bold=[[1, 2]], lower=["SUN397"]))
    assert [cell for row in rows for cell in row if "textbf" in cell] == [
        r"\textbf{9.9}"
    ]  # of Cars one alone has a figure
    _, rows = table(latex_text(HEADER, [*ROWS, *ROWS], bold=[[0, 1], [3, 5]], unranked=["average", "±"]))
    found = [(number, cell) for number, row in enumerate(rows) for cell in row if "textbf" in cell]
    assert found == [(1, r"\textbf{63.2}"), (2, r"\textbf{60.1}"), (4, r"\textbf{63.2}")], "each group has its own"
    _, rows = table(latex_text(HEADER, ROWS, bold=[]))
    assert not [cell for row in rows for cell in row if "textbf" in cell]
    _, rows = table(latex_text(HEADER, ROWS, unranked=["SUN397", "Cars", "average"], lower=["±"]))
    assert [cell for row in rows for cell in row if "textbf" in cell] == [r"\textbf{0.3}"]


def test_notes_are_comments_above_the_table():
    note = "50 % of {these} & those,\nnot \\all"
    latex = latex_text(HEADER, ROWS, comments=[note, "more"])
    first, *comments = latex[: latex.index("\\begin{table}")].splitlines()
    assert first == "% \\usepackage{booktabs}"
    assert comments == ["% 50 % of {these} & those, not \\all", "% more"]
    plain = latex_text(HEADER, ROWS)
    assert latex.replace("\n".join([*comments, ""]), "") == plain
    table_of_notes = Table(HEADER, ROWS, notes=["a note"], ranked=((0,), (1,)))
    assert "% a note\n% Bold: the best" in table_of_notes.latex()


def test_numbers():
    cells = ["71.3", "71.3 ± 0.2", "1,024", "96 %", "−0.5", "-0.5", "λ=.3", "–", "", "3/4"]
    assert [value(cell) for cell in cells] == [71.3, 71.3, 1024.0, 96.0, -0.5, -0.5, None, None, None, None]
    assert best_rows([["9.9"], ["10.0"]], [0, 1], 0, lower=False) == [1]  # as numbers, not as text


def test_the_first_column_is_a_name_even_where_it_looks_like_a_number():
    spec, rows = table(latex_text(["scaling_factor", "DTD"], [["0.3", "50.1"], ["0.4", "49.0"]]))
    assert (spec, rows[2][0]) == ("lr", "0.4")


def test_an_empty_table_has_its_rules():
    spec, rows = table(latex_text(HEADER, []))
    assert (spec, len(rows)) == ("llllll", 1)
