"""Where rules were published."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """Where a rule was published."""

    title: str
    authors: str
    """As in BibTeX: `Last, First and Last, First`."""
    year: int
    arxiv: str = ""
    venue: str = ""

    def bibtex(self) -> str:
        """A BibTeX entry."""
        word = "".join(letter for letter in self.title.split()[0].lower() if letter.isalnum())
        key = f"{self.authors.split(',')[0].lower()}{self.year}{word}"
        fields = {"title": self.title, "author": self.authors, "booktitle": self.venue, "year": str(self.year)}
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"}
        lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items() if value)
        return f"@{'inproceedings' if self.venue else 'misc'}{{{key},\n{lines}}}"
