"""Words in SVG pictures."""

from xml.sax.saxutils import escape

Number = float | int


def text(x: Number, y: Number, words: str, anchor: str = "start", size: int = 11, weight: int = 400) -> str:
    look = f' text-anchor="{anchor}"' if anchor != "start" else ""
    look += f' font-size="{size}"' if size != 11 else ""
    look += f' font-weight="{weight}"' if weight != 400 else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{look}>{clean(words)}</text>'


def clean(words: str) -> str:
    """Escaped, and without characters that XML does not know."""
    return escape("".join(character for character in words if character.isprintable()))


def shortened(words: str, most: int) -> str:
    return words if len(words) <= most else f"{words[: most - 1]}…"
