"""Learned merging coefficients as a small file that people can read: a λ for each expert, by parameter or for all."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from clipfuse.checkpoints.json_file import read_json
from clipfuse.checkpoints.names import PROJECTION
from clipfuse.checkpoints.run_file import COEFFICIENTS
from clipfuse.config import Config, parse
from clipfuse.errors import ConfigError, unknown
from clipfuse.fusion.registry import Uses
from clipfuse.shapes import Float
from clipfuse.version import __version__

SCHEMA = 1
ALL = "all"
"""In the place of a parameter's name where a λ is for the whole model."""

LARGEST = 3.4028235e38
"""The largest float32 as it is written, which is a little more than what it is."""

CoefficientGrain = Literal["layer", "task"]
BEFORE = (
    *("embeddings.class_embedding", "embeddings.patch_embedding", "embeddings.position_embedding"),
    "pre_layrnorm",
)
INSIDE = (
    *("layer_norm1", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    *("layer_norm2", "mlp.fc1", "mlp.fc2"),
)
AFTER = ("post_layernorm", PROJECTION.removesuffix(".weight"))
"""What has parameters, in the order in which an image passes it: before the layers, inside one, after them."""


class CoefficientsFile(Config):
    """What is in the file; the rows are checked by `Coefficients`."""

    clipfuse: str = ""
    method: str
    grain: CoefficientGrain
    experts: Sequence[str]
    uses: Sequence[Uses] = ()
    seed: int = 0
    data: Sequence[Mapping[str, Any]] = ()
    edits: Sequence[Mapping[str, Any]] = ()
    coefficients: Mapping[str, Sequence[Annotated[float, Field(ge=-LARGEST, le=LARGEST)]]]


@dataclass(frozen=True)
class Coefficients:
    """λ by parameter and expert, and where it comes from.

    Raises:
        ConfigError: a row has not one finite float32 for each expert, or its name does not fit the grain.
    """

    experts: tuple[str, ...]
    """Whose task vector a number is for."""
    rows: Mapping[str, tuple[float, ...]]
    """Canonical name of a parameter → λ of each expert, float32; under `all` alone where the grain is `task`."""
    grain: CoefficientGrain = "layer"
    """Whether each parameter has numbers of its own (`layer`) or all have the same (`task`)."""
    method: str = "adamerging"
    """What learned them."""
    uses: tuple[Uses, ...] = ()
    """What it saw besides weights."""
    data: tuple[Mapping[str, Any], ...] = ()
    """What it looked at, a row of the ledger for each split."""
    seed: int = 0
    """Of the images' order."""
    edits: tuple[Mapping[str, Any], ...] = ()
    """What was done to the task vectors first, as in YAML."""

    def __post_init__(self) -> None:
        if not self.experts or len({*self.experts}) < len(self.experts):
            raise ConfigError(f"experts: takes different names, one or more (found {list(self.experts)!r:.80})")
        if not self.rows or (self.grain == "task" and {*self.rows} != {ALL}):
            takes = f"one row, {ALL!r}" if self.grain == "task" else "a row for each parameter"
            raise ConfigError(f"coefficients: grain {self.grain!r} takes {takes} (found {list(self.rows)!r:.80})")
        for name, row in self.rows.items():
            if len(row) != len(self.experts):
                takes = f"takes one for each of {len(self.experts)} experts"
                raise ConfigError(f"coefficients: {name}: has {len(row)} numbers; {takes}")
            for expert, value in zip(self.experts, row, strict=True):
                if not abs(value) <= LARGEST:
                    raise ConfigError(f"coefficients: {name}: {expert}: takes a finite float32 (found {value:.6g})")

    def matrix(self, tasks: Sequence[str], names: Sequence[str]) -> Float[Tensor, "parameter task"]:
        """λ, float32, a row for each of `names` and a column for each of `tasks`, which `check_fits` has checked."""
        columns = [self.experts.index(task) for task in tasks]
        rows = [self.rows[ALL if self.grain == "task" else name] for name in names]
        return torch.tensor(rows, dtype=torch.float32).view(len(names), len(self.experts))[:, columns]

    def to_text(self) -> str:
        """The file: JSON, one parameter a line as in the tower; a number is the shortest that gives its float32."""
        lines = table({json.dumps(name): self.rows[name] for name in sorted(self.rows, key=place)})
        facts = {"schema": SCHEMA, "clipfuse": __version__, "method": self.method, "grain": self.grain}
        facts |= {"edits": self.edits, "experts": self.experts, "uses": self.uses, "seed": self.seed}
        parts = [f'  "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in facts.items()]
        parts += [block("data", "[]", [json.dumps(dict(row), ensure_ascii=False) for row in self.data])]
        parts += [block("coefficients", "{}", lines)]
        return "{\n" + ",\n".join(parts) + "\n}\n"


def table(rows: Mapping[str, Sequence[float]]) -> list[str]:
    """`"name": [numbers]` in columns, the points below each other unless numbers are far from one."""
    words = {name: [str(np.float32(value)) for value in row] for name, row in rows.items()}
    head, width = max(map(len, words)) + 1, max(len(word.lstrip("-")) for row in words.values() for word in row)

    def line(name: str, row: Sequence[str]) -> str:
        cells = [word if word.startswith("-") else f" {word}" for word in row]
        padded = [f"{cell},".ljust(width + 2) for cell in cells[:-1]]
        return f"{name}:".ljust(head) + f" [{' '.join([*padded, cells[-1]])}]"

    return [line(*entry) for entry in words.items()]


def block(key: str, brackets: str, lines: Sequence[str]) -> str:
    """A list or a mapping, an entry a line."""
    inside = ",\n".join(f"    {line}" for line in lines)
    return f'  "{key}": ' + (f"{brackets[0]}\n{inside}\n  {brackets[1]}" if lines else brackets)


def read_coefficients(path: str | Path) -> Coefficients:
    """The coefficients in a file, or in the `coefficients.json` of a folder. Raises ConfigError, one line."""
    path = Path(path).expanduser()
    path = path / COEFFICIENTS if path.is_dir() else path
    try:
        tree: Any = read_json(path)
    except FileNotFoundError:
        takes = f"takes a {COEFFICIENTS} that adamerging wrote, or the folder of the merge that holds it"
        raise ConfigError(f"{path}: no such file; {takes}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(tree, dict) or "coefficients" not in tree:
        raise ConfigError(f"{path}: holds no coefficients; takes a {COEFFICIENTS} as adamerging writes it")
    if (schema := tree.pop("schema", None)) != SCHEMA:
        raise ConfigError(f"{path}: schema: is {schema!r:.40}; clipfuse {__version__} takes {SCHEMA}")
    try:
        file = parse(CoefficientsFile, tree, str(path))
    except ConfigError as error:
        first = str(error).partition(" · ")[0]
        raise ConfigError(first.replace(f"{path}.", f"{path}: ", 1)) from None
    rows = {name: tuple(float(np.float32(value)) for value in row) for name, row in file.coefficients.items()}
    try:
        return Coefficients(
            tuple(file.experts),
            rows,
            file.grain,
            file.method,
            tuple(file.uses),
            tuple(file.data),
            file.seed,
            tuple(file.edits),
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def check_fits(
    coefficients: Coefficients, tasks: Sequence[str], names: Sequence[str], where: str = COEFFICIENTS
) -> None:
    """Raises ConfigError unless the coefficients are for these experts (in any order) and these parameters."""
    for what, found, wanted in (("expert", coefficients.experts, tasks), ("parameter", coefficients.rows, names)):
        if what == "parameter" and coefficients.grain == "task":
            return
        for name in found:
            if name not in wanted:
                raise ConfigError(f"{where}: {unknown(what, name, wanted, limit=8)}")
        missing = [name for name in wanted if name not in found]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ConfigError(f"{where}: lacks {missing[0]}{more}; takes numbers for every {what} of the pool")


def place(name: str) -> tuple[int, int, int, str]:
    """For sorting canonical names as images pass them: 0 before the layers, 1 inside, 2 after; layer; part; name."""
    if found := re.fullmatch(r"encoder\.layers\.(\d{1,9})\.(.+)", name):
        stage, layer, part, parts = 1, int(found[1]), found[2], INSIDE
    else:
        stage, layer, part, parts = (0, 0, name, BEFORE) if name.startswith(BEFORE) else (2, 0, name, AFTER)
    at = next((number for number, start in enumerate(parts) if part.startswith(start)), len(parts))
    return stage, layer, 2 * at + name.endswith(".bias"), name
