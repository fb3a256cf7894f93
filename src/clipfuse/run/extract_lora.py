"""An expert as a LoRA: its task vector's matrices cut to a rank, and what that costs."""

from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfuse.checkpoints.adapter_files import factor_names, write_adapter_config
from clipfuse.checkpoints.checkpoint import Checkpoint
from clipfuse.checkpoints.lora_config import PLAIN
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter
from clipfuse.errors import ConfigError, ModelError
from clipfuse.stats.spectra import leading


def extract(
    base: Checkpoint,
    expert: Checkpoint,
    folder: Path,
    base_ref: str,
    rank: int,
    dtype: torch.dtype | None = None,
    told: Callable[[int], None] = lambda count: None,
) -> Mapping[str, Any]:
    """Write the adapter whose B A are the best approximations of rank `rank` of the linear layers' task vectors.

    What is not a linear layer's weight (biases, LayerNorms, embeddings, a projection) stays the base's.

    Returns:
        `error`: ‖τ − τ'‖ / ‖τ‖ over all parameters, τ' what the adapter adds; `error_of_matrices`: the same over the
        linear layers; `worst`: the layer with the largest.

    Raises:
        ConfigError: a rank below 1.
        ModelError: the two have other parameters, or are equal.
        OutputError: no space, no permission.
    """
    if rank < 1:
        raise ConfigError(f"rank: takes at least 1 (found {rank})")
    if odd := sorted(base.keys() ^ expert.keys()):
        raise ModelError(
            f"{expert.source}: {odd[0]!r} is in it or in {base_ref} only; a LoRA is a difference of the two"
        )
    if odd := sorted(name for name in base if base.spec(name).shape != expert.spec(name).shape):
        raise ModelError(
            f"{expert.source}: {odd[0]} is {expert.spec(odd[0]).shape}, {base_ref}'s {base.spec(odd[0]).shape}"
        )
    linear = [name for name in sorted(base) if name.startswith("encoder.layers.") and len(base.spec(name).shape) == 2]
    specs: dict[str, TensorSpec] = {}
    for name in linear:
        rows, columns = base.spec(name).shape
        down, up = factor_names(name.removesuffix(".weight"))
        specs[down] = TensorSpec((rank, columns), dtype or torch.float32)
        specs[up] = TensorSpec((rows, rank), dtype or torch.float32)
    whole = lost = of_matrices = 0.0
    worst = (0.0, "")
    with SafetensorsWriter(folder / PLAIN[0], specs) as writer:
        for name in sorted(base):
            delta = expert[name].float() - base[name].float()
            square = float(delta.double().square().sum())
            if not isfinite(square):
                raise ModelError(f"{expert.source}: {name}: it or {base_ref} holds NaN or Inf")
            whole += square
            missing = square
            if name in linear:
                a, b = factors(delta, rank)
                down, up = factor_names(name.removesuffix(".weight"))
                a, b = a.to(specs[down].dtype), b.to(specs[up].dtype)
                writer.write(down, a)
                writer.write(up, b)
                missing = float((delta - b.float() @ a.float()).double().square().sum())
                of_matrices += missing
                worst = max(worst, ((missing / square) ** 0.5 if square else 0.0, name))
            lost += missing
            expert.release(name)
            base.release(name)
            told(base.spec(name).nbytes)
    if not whole:
        raise ModelError(f"{expert.source}: equals {base_ref}: there is no difference to write")
    targets = {name.split(".", 3)[3].rsplit(".", 1)[0].rsplit(".", 1)[-1] for name in linear}
    write_adapter_config(folder, rank, rank, 0.0, targets, base_ref)
    matrices = whole - (lost - of_matrices)
    return {
        "rank": rank,
        "error": (lost / whole) ** 0.5,
        "error_of_matrices": (of_matrices / matrices) ** 0.5 if matrices else 0.0,
        "worst": worst[1],
        "error_of_worst": worst[0],
    }


def factors(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) with the best B A; singular values are shared between the two, missing ones 0."""
    u, s, vh = leading(delta, rank)
    root = s.sqrt()
    a, b = delta.new_zeros(rank, delta.shape[1]), delta.new_zeros(delta.shape[0], rank)
    a[: len(s)], b[:, : len(s)] = root[:, None] * vh, u * root
    return a, b
