"""Task arithmetic and TIES in float64 from the stored weights, and how far a merged file is from them."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

TOLERANCE = 2.0**-22
"""|x − ref| ≤ 2⁻²²·(|θ0| + |λ|·Σ|τ_i|), element by element, of up to eight experts.

Of more it grows with log T, as the rounding of a pairwise sum does.
"""
SCALING_FACTOR, KEEP = 0.3, 0.2
"""λ of both rules, and the share that TIES keeps: clipfuse's defaults."""
PREFIX = "vision_model."
CHUNK = 1 << 20
"""Elements looked at together: a few hundred MB in float64 with eight experts."""


@dataclass(frozen=True)
class Chunk:
    """Up to a million elements of one tensor, float64."""

    base: Tensor
    deltas: Tensor  # (task, element)
    merged: Tensor
    dtype: torch.dtype
    """Of the merged file."""


Reference = Callable[[Chunk], tuple[Tensor, Tensor]]
"""Chunk → merged task vector, and which elements are exempt because their elected sign is a tie."""


@dataclass(frozen=True)
class Distance:
    """What was found of a merged file."""

    elements: int
    worst: float
    """Largest |x − ref| in units of its bound; up to 1 is right."""
    exempt: int
    """Elements not judged: their elected sign is a tie in float32."""

    def __str__(self) -> str:
        verdict = "right" if self.worst <= 1 else "WRONG"
        exempt = f", {self.exempt:,} sign ties exempt" if self.exempt else ""
        return f"{verdict}: {self.elements:,} elements, at most {self.worst:.2f} of the tolerance{exempt}"


def chunks(models: Sequence[Path], merged: Path | None = None) -> Iterator[Chunk]:
    """All elements of the vision tower across base, experts and result; safetensors refuses a name that is missing."""
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in [*models, *([merged] if merged else [])]]
        for name in sorted(name for name in files[0].keys() if name.startswith(PREFIX)):  # noqa: SIM118
            flat = [file.get_tensor(name).flatten() for file in files]
            for start in range(0, flat[0].numel(), CHUNK):
                parts = [tensor[start : start + CHUNK].double() for tensor in flat]
                last = len(models)
                deltas = torch.stack(parts[1:last]) - parts[0]
                yield Chunk(parts[0], deltas, parts[-1], flat[-1].dtype)


def task_arithmetic(models: Sequence[Path]) -> Reference:
    """Δ = Σ τ."""
    return lambda chunk: (chunk.deltas.sum(0), torch.zeros_like(chunk.base, dtype=torch.bool))


def ties_merging(models: Sequence[Path]) -> Reference:
    """Δ = sum of the trimmed entries that have the sign of their sum.

    What is trimmed is decided on |τ| rounded once to float32: rounding keeps the order, so only equal magnitudes can
    change sides, and all of these stay. The majority sign is never asked for: it speaks where a sign is a tie.
    """
    floors = torch.tensor([floor(models[0], expert) for expert in models[1:]])

    def reference(chunk: Chunk) -> tuple[Tensor, Tensor]:
        kept = chunk.deltas.abs().float() >= floors[:, None]
        trimmed = torch.where(kept, chunk.deltas, 0.0)
        total, mass = trimmed.sum(0), trimmed.abs().sum(0)
        agreeing = torch.where(trimmed * total.sign() > 0, trimmed, 0.0)
        return agreeing.sum(0), (total.abs() <= TOLERANCE * mass) & (mass > 0)

    return reference


def floor(base: Path, expert: Path) -> float:
    """The (d − ⌊keep·d⌋)-th smallest of an expert's d magnitudes |τ|; holds two float32 vectors."""
    magnitudes = np.concatenate([chunk.deltas[0].abs().float().numpy() for chunk in chunks([base, expert])])
    rank = magnitudes.size - int(KEEP * magnitudes.size)
    magnitudes.partition(rank - 1)
    return float(magnitudes[rank - 1])


REFERENCES: dict[str, Callable[[Sequence[Path]], Reference]] = {
    "task_arithmetic": task_arithmetic,
    "ties_merging": ties_merging,
}


def distance(method: str, models: Sequence[Path], merged: Path) -> Distance:
    """Compare every element of a merged model.safetensors with the reference; `models` begins with the base."""
    reference = REFERENCES[method](models)
    elements, exempt, worst = 0, 0, 0.0
    tolerance = TOLERANCE * max(1.0, math.log2(len(models) - 1) / 3)
    for chunk in chunks(models, merged):
        delta, free = reference(chunk)
        expected = chunk.base + SCALING_FACTOR * delta
        bound = tolerance * (chunk.base.abs() + SCALING_FACTOR * chunk.deltas.abs().sum(0))
        if chunk.dtype != torch.float32:
            bound += torch.finfo(chunk.dtype).eps * expected.abs()  # the one rounding at the write
        off = (chunk.merged - expected).abs()
        off = torch.where(free | (off == 0), 0.0, off / bound)
        elements, exempt, worst = elements + off.numel(), exempt + int(free.sum()), max(worst, float(off.max()))
    return Distance(elements, worst, exempt)


def loads(folder: Path) -> str:
    """What transformers says of a merged folder. Raises RuntimeError if it would initialise anything at random."""
    from transformers import CLIPVisionModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    loaded: Any = CLIPVisionModel.from_pretrained(folder, output_loading_info=True)
    found = loaded[1]
    odd = {key: sorted(found[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if found[key]}
    if odd:
        raise RuntimeError(f"{folder}: CLIPVisionModel.from_pretrained: {odd}")
    return "loads with CLIPVisionModel.from_pretrained, no key missing or unexpected"
