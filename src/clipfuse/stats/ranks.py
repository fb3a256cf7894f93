"""Order of a tensor's entries by magnitude: exact, equal ones by place, and so the same everywhere."""

import numpy as np
import torch
from torch import Tensor

from clipfuse.shapes import Bool, Float, Int


def places_by_magnitude(rows: Float[Tensor, "row n"]) -> Int[Tensor, "row n"]:
    """Where the entries of each row stand, from the smallest magnitude to the largest."""
    # bits of non-negative floats sort like the floats; with the place below them no two keys are equal
    keys = (rows.abs().view(torch.int32).long() << 32) | torch.arange(rows.shape[1], device=rows.device)
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)  # twice as fast as torch's
    else:
        keys = keys.sort(dim=1).values
    return keys & 0xFFFFFFFF


def kth_smallest(sizes: Float[Tensor, "n"], k: int) -> float:
    """The k-th smallest number, counted from 1."""
    if sizes.device.type == "cpu":
        return float(np.partition(sizes.numpy(), k - 1)[k - 1])
    return float(sizes.kthvalue(k).values)


def smallest(sizes: Float[Tensor, "n"], count: int) -> Bool[Tensor, "n"]:
    """A mask of the `count` smallest numbers; of equal ones those that stand first."""
    if count in (0, len(sizes)):
        return torch.full_like(sizes, bool(count), dtype=torch.bool)
    limit = kth_smallest(sizes, count)
    chosen, equal = sizes < limit, (sizes == limit).nonzero()[:, 0]
    chosen[equal[: count - int(chosen.count_nonzero())]] = True
    return chosen
