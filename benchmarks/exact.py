"""The compared rules in float64, written down naively: who is right where two tools differ.

A rule is `(model, **settings) → Δ by name`, λ included. Everything is held in memory: for small pools.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.linalg import svd

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Model:
    """A pool in float64. Without a base, the first model stands in for it."""

    base: Tensors
    deltas: Tensors
    """(task, *shape) by name."""

    @property
    def tasks(self) -> int:
        return next(iter(self.deltas.values())).shape[0]

    def flat(self) -> Tensor:
        """τ (task, d)."""
        return torch.cat([delta.flatten(1) for delta in self.deltas.values()], 1)

    def unflat(self, vector: Tensor) -> Tensors:
        """(d,) → tensors."""
        sizes = [tensor.numel() for tensor in self.base.values()]
        parts = zip(self.base.items(), vector.split(sizes), strict=True)
        return {name: part.view(tensor.shape) for (name, tensor), part in parts}

    def map(self, work: Callable[[Tensor], Tensor]) -> Tensors:
        return {name: work(delta) for name, delta in self.deltas.items()}

    def matrices(self, work: Callable[[Tensor], Tensor], factor: float) -> Tensors:
        """`work` on 2-D weights, the mean of the rest, times λ."""
        return self.map(lambda delta: factor * (work(delta) if delta.dim() == 3 else delta.mean(0)))


def is_linear(name: str) -> bool:
    """Whether a tensor is the weight of an nn.Linear."""
    return re.fullmatch(r"encoder\.layers\.\d+\.(self_attn|mlp)\.\w+\.weight", name) is not None


def polar(matrix: Tensor) -> Tensor:
    left, _, right = svd(matrix, full_matrices=False)
    return left @ right


def floors(flat: Tensor, keep: float) -> Tensor:
    """Per row the (d − ⌊keep·d⌋)-th smallest magnitude as float32 rounds it: rounding keeps the order."""
    d = flat.shape[1]
    return flat.float().abs().kthvalue(d - int(keep * d), dim=1, keepdim=True).values


def average(model: Model, weights: Sequence[float] | None = None, scaling_factor: float = 1.0) -> Tensors:
    """λ·Σ w_i τ_i / Σ w_i."""
    row = torch.tensor(weights or [1.0] * model.tasks, dtype=torch.float64)
    return model.map(lambda delta: scaling_factor * torch.tensordot(row / row.sum(), delta, 1))


def task_arithmetic(model: Model, scaling_factor: float = 0.3) -> Tensors:
    return model.map(lambda delta: scaling_factor * delta.sum(0))


def ties(deltas: Tensor, keep: float, merge: str) -> Tensor:
    """(task, d) → (d,)."""
    trimmed = deltas * (deltas.float().abs() >= floors(deltas, keep)) if keep < 1 else deltas
    sign = trimmed.sum(0).sign()
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    agreeing = trimmed * (trimmed * sign > 0)
    return agreeing.sum(0) / ((agreeing != 0).sum(0).clamp(min=1) if merge == "mean" else 1)


def ties_merging(model: Model, keep: float = 0.2, merge: str = "sum", scaling_factor: float = 0.3) -> Tensors:
    return model.unflat(scaling_factor * ties(model.flat(), keep, merge))


def magmax(model: Model, scaling_factor: float = 0.5) -> Tensors:
    return model.map(lambda delta: scaling_factor * delta.gather(0, delta.abs().argmax(0, keepdim=True))[0])


def model_stock(model: Model) -> Tensors:
    """The mean of the angles of all pairs, tensor by tensor."""
    tasks = model.tasks

    def work(delta: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(delta.flatten(1), dim=1, eps=0)
        cosines = (unit @ unit.T)[*torch.triu_indices(tasks, tasks, 1)].clamp(-1, 1)
        cosine = math.cos(cosines.acos().mean())
        return delta.mean(0) * tasks * cosine / ((tasks - 1) * cosine + 1)

    return model.map(work)


def consensus(model: Model, t: float = 0.4, k: int = 2, scaling_factor: float = 0.3) -> Tensors:
    def work(delta: Tensor) -> Tensor:
        total = delta.sum(0)
        return scaling_factor * total * ((delta.abs() > t * (total - delta).abs()).sum(0) >= k)

    return model.map(work)


def linear_interpolation(model: Model, t: float = 0.5) -> Tensors:
    return model.map(lambda delta: t * delta[1])


def slerp(model: Model, t: float = 0.5) -> Tensors:
    def work(name: str) -> Tensor:
        first, second = model.base[name], model.base[name] + model.deltas[name][1]
        cosine = float((first * second).sum() / first.norm() / second.norm())
        if abs(cosine) > 0.9995:
            return t * (second - first)
        angle = math.acos(cosine)
        return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle) - first

    return {name: work(name) for name in model.base}


def tsv_merging(model: Model, scaling_factor: float = 1.0) -> Tensors:
    def work(deltas: Tensor) -> Tensor:
        rank = min(deltas.shape[1:]) // model.tasks
        left, values, right = svd(deltas, full_matrices=False)
        lefts = torch.cat([part[:, :rank] for part in left], 1)
        rights = torch.cat([part[:rank] for part in right])
        return polar(lefts) @ torch.diag(values[:, :rank].flatten()) @ polar(rights)

    return model.matrices(work, scaling_factor)


def iso_c(model: Model, scaling_factor: float = 1.0) -> Tensors:
    def work(deltas: Tensor) -> Tensor:
        left, values, right = svd(deltas.sum(0), full_matrices=False)
        return values.mean() * left @ right

    return model.matrices(work, scaling_factor)


def iso_cts(model: Model, common_space_fraction: float = 0.8, scaling_factor: float = 1.0) -> Tensors:
    def work(deltas: Tensor) -> Tensor:
        rank, tasks = min(deltas.shape[1:]), model.tasks
        own = round((rank - int(rank * common_space_fraction)) / tasks)
        common = rank - own * tasks
        left, values, right = (part[..., :common] if part.dim() < 2 else part for part in svd(deltas.sum(0), False))
        left, right = left[:, :common], right[:common]
        parts = [svd(delta - left @ (left.T @ delta), full_matrices=False) for delta in deltas]
        spectrum = torch.cat([values, *(part[1][:own] for part in parts)]).mean()
        lefts = torch.cat([left, *(part[0][:, :own] for part in parts)], 1)
        return spectrum * polar(lefts) @ polar(torch.cat([right, *(part[2][:own] for part in parts)]))

    return model.matrices(work, scaling_factor)


def svc(model: Model, merged: Tensors, alpha: float) -> Tensors:
    """Finish: singular values of Δ by how often the tasks count them."""

    def work(name: str, delta: Tensor) -> Tensor:
        if delta.dim() != 2:
            return delta
        left, values, right = svd(delta, full_matrices=False)
        own = left.T @ model.deltas[name]  # (task, r, in)
        shares = ((left.T @ delta) * own).sum(-1) / own.square().sum(-1)
        return left @ torch.diag(values * model.tasks / shares.clamp(min=alpha).sum(0)) @ right

    return {name: work(name, delta) for name, delta in merged.items()}


def expo(model: Model, merged: Tensors, alpha: float) -> Tensors:
    return {name: (1 + alpha) * delta for name, delta in merged.items()}


def magnitude_prune(model: Model, keep: float) -> Model:
    """Edit: the smallest entries of each tensor are zeroed, the count as in ties_merging."""

    def work(delta: Tensor) -> Tensor:
        flat = delta.flatten(1)
        return (flat * (flat.float().abs() >= floors(flat, keep))).view_as(delta)

    return Model(model.base, model.map(work))


RULES: Mapping[str, Callable[..., Any]] = {
    "simple_average": average,
    "weighted_average": average,
    "continual_average": average,
    "continual_task_arithmetic": task_arithmetic,
    **{
        rule.__name__: rule
        for rule in (
            *(task_arithmetic, ties_merging, magmax, model_stock, consensus, linear_interpolation, slerp),
            *(tsv_merging, iso_c, iso_cts, svc, expo, magnitude_prune),
        )
    },
}
