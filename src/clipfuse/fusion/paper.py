"""Where rules were published, and the papers of more than one of them."""

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


SOUPS = Paper(
    "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time",
    "Wortsman, Mitchell and Ilharco, Gabriel and Gadre, Samir Yitzhak and others",
    2022,
    "2203.05482",
    "ICML",
)
TASK_ARITHMETIC = Paper(
    "Editing Models with Task Arithmetic",
    "Ilharco, Gabriel and Ribeiro, Marco Tulio and Wortsman, Mitchell and Schmidt, Ludwig and Hajishirzi, Hannaneh"
    " and Farhadi, Ali",
    2023,
    "2212.04089",
    "ICLR",
)
TIES = Paper(
    "TIES-Merging: Resolving Interference When Merging Models",
    "Yadav, Prateek and Tam, Derek and Choshen, Leshem and Raffel, Colin and Bansal, Mohit",
    2023,
    "2306.01708",
    "NeurIPS",
)
