"""Writing a LoRA adapter's folder: as peft has it for a CLIPVisionModel of transformers ≥ 5.6, without peft."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from clipfuse.checkpoints.locate import ADAPTER
from clipfuse.checkpoints.lora_config import LINEARISED, PLAIN
from clipfuse.checkpoints.lora_parts import OUTER
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter, write_text

Pair = tuple[Tensor, Tensor]
"""A (r, in) and B (out, r)."""


def write_adapter(
    folder: Path,
    factors: Mapping[str, Pair],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Iterable[str],
    base_ref: str,
    revision: str | None = None,
    initial: Mapping[str, Pair] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `adapter_config.json` and the tensors into a folder that is being written (see `new_folder`).

    Args:
        folder: Is there.
        factors: Module by canonical name → A (rank, in) and B (out, rank).
        rank: r.
        alpha: B A counts α / r times.
        dropout: That they were trained with; told, nothing depends on it.
        targets: Ends of names that mean these modules and no other linear ones.
        base_ref: What they were trained on.
        revision: Its commit.
        initial: A0 and B0 of the same modules, if the layers are linear around them: then the file is a linearised
            adapter's of FusionBench, which peft does not read.
        dtype: Of the tensors.

    Raises:
        OutputError: no space, no permission.
    """
    tensors: dict[str, Tensor] = {}
    for module, pair in sorted(factors.items()):
        if initial is None:
            tensors |= zip(factor_names(module), pair, strict=True)
        else:
            tensors |= zip(linearised_names(module), (*pair, *initial[module]), strict=True)
    specs = {name: TensorSpec(tuple(tensor.shape), dtype) for name, tensor in tensors.items()}
    with SafetensorsWriter(folder / (LINEARISED if initial is not None else PLAIN[0]), specs) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.to(dtype))
    write_adapter_config(folder, rank, alpha, dropout, targets, base_ref, revision)


def factor_names(module: str) -> tuple[str, str]:
    """What an adapter calls A and B of a module: as peft on a tower of transformers ≥ 5.6, or on its inner model."""
    return f"{OUTER}{module}.lora_A.weight", f"{OUTER}{module}.lora_B.weight"


def linearised_names(module: str) -> tuple[str, str, str, str]:
    """What FusionBench calls A, B, A0 and B0 of a module; the parameters 0 and 1 are its weight and bias."""
    inner, before = f"{OUTER}{module}.model", f"{OUTER}{module}.params0_values"
    return f"{inner}.lora_A.default.weight", f"{inner}.lora_B.default.weight", f"{before}.2", f"{before}.3"


def write_adapter_config(
    folder: Path,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Iterable[str],
    base_ref: str,
    revision: str | None = None,
) -> None:
    """Write `adapter_config.json`; arguments as `write_adapter`'s. Raises OutputError."""
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_ref,
        **({"revision": revision} if revision else {}),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(set(targets)),
        "task_type": None,
    }
    write_text(folder / ADAPTER, json.dumps(config, indent=2) + "\n")
