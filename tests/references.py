"""What parity tests share: flat float64 views of random models, and the tolerance of element-wise rules."""

import torch
from torch import Tensor

import clipfuse

Models = dict[str, dict[str, Tensor]]
EPS = 2.0**-22


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def split(models: Models) -> tuple[Tensor, Tensor, Tensor]:
    """θ0 (d), θ (task, d), τ (task, d), float64 from the stored weights."""
    base = flat(models["_pretrained_"])
    experts = torch.stack([flat(tensors) for name, tensors in models.items() if name != "_pretrained_"])
    return base, experts, experts - base


def result(models: Models, method: str, **options) -> Tensor:
    return flat(dict(clipfuse.merge(models, method, **options).tensors))


def check(found: Tensor, base: Tensor, delta: Tensor, size: Tensor, exempt: Tensor | None = None) -> None:
    """|x − ref| ≤ 2⁻²² · (|θ0| + size) but for exempt elements, which must be few."""
    wrong = (found - (base + delta)).abs() > EPS * (base.abs() + size)
    if exempt is not None:
        assert exempt.double().mean() < 1e-3
        wrong &= ~exempt
    assert not wrong.any(), f"{int(wrong.sum())} elements are off"
