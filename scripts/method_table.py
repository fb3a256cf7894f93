"""Write docs/methods.md: one table of all methods, edits, finishes and what comes after them, from the registry.

python scripts/method_table.py
"""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import clipfuse.fusion  # noqa: F401  registers the rules
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import TABLES, Rule

PAGE = Path(__file__).parents[1] / "docs/methods.md"

HEAD = """# Methods, edits and finishes

*This page is made from the registry by `scripts/method_table.py` (`make docs`); do not edit it.*

Edits are done to each task vector τ_k = θ_k − θ0, then the method merges, then λ (`scaling_factor`) and the finishes
are applied: θ0 + finishes(λ·Δ). What comes `after` is learned for each task on the merged encoder. Shares that are kept
are in (0, 1], shares that are dropped in [0, 1). "Data" is what a method sees besides weights; with other settings it
may be other data, see [methods that look at data](data.md). "Deviations" are from the paper, or from the code that its
figures were made with. `clipfuse show method NAME` says more, `--bibtex` prints the paper's entry.
"""

COLUMNS = ("name", "kind", "formula", "settings and defaults", "data", "paper", "deviations")


def page() -> str:
    """The whole page. Rules of plug-ins are left out."""
    rules = [rule for table in TABLES.values() for rule in table.values() if rule.origin is None]
    lines = [line(COLUMNS), line(["---"] * len(COLUMNS)), *[line(cells(rule)) for rule in rules]]
    return "\n".join([HEAD, *lines, ""])


def line(texts: Any) -> str:
    return "| " + " | ".join(texts) + " |"


def cells(rule: Rule) -> list[str]:
    """A rule's row."""
    takes = f" of {rule.models} models" if rule.models else ", experts arrive one at a time" if rule.continual else ""
    return [
        f"`{rule.name}`",
        rule.kind + takes,
        code(rule.formula if rule.config.model_fields else formula_of(rule)),
        "<br>".join(setting(name, field) for name, field in rule.config.model_fields.items()) or "–",
        ", ".join(rule.uses_by_default) or "none",
        cite(rule.paper),
        prose(deviations(rule)) or "none",
    ]


def formula_of(rule: Rule) -> str:
    """The first formula in the docstring of a rule without settings, whose configuration has none of its own."""
    found = re.search(r"\n\n([^\n]* = [^\n]*?)\. ", inspect.getdoc(rule.function) or "")
    return found[1] if found else rule.summary


def setting(name: str, field: Any) -> str:
    if field.is_required():
        return f"`{name}` required"
    return f"`{name} = {json.dumps(field.default, ensure_ascii=False)}`".replace('"', "")


def deviations(rule: Rule) -> str:
    """The paragraph of a docstring that begins with Deviations:."""
    found = re.search(r"^Deviations: (.*?)(?=\n\n|\Z)", inspect.getdoc(rule.function) or "", re.M | re.S)
    return " ".join(found[1].split()) if found else ""


def cite(paper: Paper) -> str:
    """`Yadav et al., 2023`, linked to arXiv where it is there."""
    names = [author.split(",")[0] for author in paper.authors.split(" and ")]
    who = names[0] if len(names) == 1 else " and ".join(names) if len(names) == 2 else f"{names[0]} et al."
    title = f"{paper.title}{', ' + paper.venue if paper.venue else ''}".replace('"', "'").replace("|", "∣")
    link = f'[{who}, {paper.year}](https://arxiv.org/abs/{paper.arxiv} "{title}")'
    return link if paper.arxiv else f"{who}, {paper.year}: {title}"


def code(text: str) -> str:
    """A formula as code; its bars may not be those of the table."""
    return f"`{text.replace('|', '∣').replace('`', '').rstrip('.')}`"


def prose(text: str) -> str:
    """Text of a docstring for a cell of the table."""
    parts = re.split(r"(`[^`]*`)", text.replace("|", "∣"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
