"""TVQ: task vectors in few bits."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from clipfuse.config import Config
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import edit
from clipfuse.pool import Leaf
from clipfuse.shapes import Float

TVQ = Paper(
    "Task Vector Quantization for Memory-Efficient Model Merging",
    "Kim, Youngeun and Lee, Seunghwan and Jung, Aecheon and Ryu, Bogon and Hong, Sungeun",
    2025,
    "2503.06921",
    "ICCV",
)


class Quantise(Config):
    """τ ← step·round(τ/step), step = (max τ − min τ)/(2^bits − 1), per tensor."""

    bits: Annotated[int, Field(ge=1, le=16, examples=[4])]
    """Bits an entry; a tensor takes at most 2^bits values."""


@edit(paper=TVQ, grain="leaf")
def quantise(leaf: Leaf, cfg: Quantise) -> Float[Tensor, "task *shape"]:
    """Quantise task vectors to `bits` bits and back (Kim et al., 2025).

    τ ← step·(q − z) with step = (max τ − min τ)/(2^bits − 1) over a tensor, z = −round(min τ/step) and
    q = clamp(round(τ/step) + z, 0, 2^bits − 1): off by half a step at most, and zero stays zero where the range holds
    it. A tensor of equal entries stays as it is. One pass; computed in float64, rounded once.

    Deviations: asymmetric, as the paper's main results; its symmetric form (absmax) is left out. The bits are those
    of its storage: nothing is stored smaller here. Of RTVQ, which quantises a common base and offsets apart, nothing.

    Source: task vector quantisation (TVQ).
    """
    levels = 2**cfg.bits - 1
    quantised = leaf.deltas.new_empty(leaf.deltas.shape)
    for row, out in zip(leaf.deltas, quantised, strict=True):
        low, high = (float(end) for end in row.aminmax())
        step = (high - low) / levels
        if step == 0:
            out.copy_(row)
            continue
        first = round(low / step)
        out.copy_(row.double().div_(step).round_().clamp_(first, first + levels).mul_(step))
    return quantised
