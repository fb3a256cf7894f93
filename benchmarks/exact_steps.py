"""The compared rules that take steps, by Adam or one expert at a time, in float64: see exact.py."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from exact import Model, Tensors, floors, is_linear, ties
from torch import Tensor
from torch.linalg import svd


def adam(start: Tensor, gradient: Callable[[Tensor], Tensor], steps: int, lr: float) -> Tensor:
    """`steps` steps of Adam with PyTorch's defaults."""
    found = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([found], lr=lr)
    for _ in range(steps):
        found.grad = gradient(found.detach())
        optimizer.step()
    return found.detach()


def wudi(model: Model, steps: int = 400, lr: float = 1e-5) -> Tensors:
    def work(deltas: Tensor) -> Tensor:
        grams = deltas.mT @ deltas / deltas.square().sum((1, 2), keepdim=True)
        total, pulled = grams.sum(0), (deltas @ grams).sum(0)
        return adam(deltas.sum(0), lambda found: 2 * (found @ total - pulled), steps, lr)

    return model.matrices(work, 1.0)


def doge_ta(model: Model, eta: float = 0.07, keep: float = 0.3, subspace: int = 6, steps: int = 400) -> Tensors:
    chosen = {name: delta for name, delta in model.deltas.items() if is_linear(name)}
    floor = floors(torch.cat([delta.flatten(1) for delta in chosen.values()], 1), keep).view(-1, 1, 1)

    def work(deltas: Tensor) -> Tensor:
        factors = eta / deltas.flatten(1).norm(dim=1).view(-1, 1, 1)
        rank = min(deltas.shape[1:])
        lefts = torch.cat([svd(delta, False)[0][:, : rank // model.tasks] for delta in deltas], 1)
        shared = svd(lefts, full_matrices=False)[0][:, : rank // subspace]
        rows = (deltas * (deltas - (factors * deltas).sum(0))).sum(-1)  # (task, out)

        def gradient(found: Tensor) -> Tensor:
            errors = rows - factors.sum() * (deltas * found).sum(-1)
            slope = -2 * factors.sum() * (errors[..., None] * deltas).sum(0)
            return slope - shared @ (shared.T @ slope)

        learned = adam(torch.zeros_like(deltas[0]), gradient, steps, 1e-4)
        return (factors * (deltas + learned) * (deltas.float().abs() >= floor)).sum(0)

    return {name: work(chosen[name]) if name in chosen else model.base[name] * 0 for name in model.base}


def continual_ties(
    model: Model, keep: float = 0.2, merge: str = "sum", accumulate: float | None = None, scaling_factor: float = 0.3
) -> Tensors:
    """As FusionBench has it with `accumulate` = λ: what is elected is added to what is merged so far."""
    merged, *others = model.flat()
    for delta in others:
        elected = ties(torch.stack([merged * (accumulate or 1), delta]), keep, merge)
        merged = elected if accumulate is None else merged + elected
    return model.unflat(scaling_factor * merged)


def opcm(model: Model, alpha: float = 0.5) -> Tensors:
    def project(delta: Tensor, merged: Tensor) -> Tensor:
        left, values, right = svd(merged, full_matrices=True)
        kept = left.T @ delta @ right.T
        kept.diagonal().fill_(0)
        first = int((values.cumsum(0) / values.sum() <= alpha).sum())
        kept[:first, :first] = 0
        return left @ kept @ right

    summed = {name: delta[0] for name, delta in model.deltas.items()}
    for task in range(1, model.tasks):
        for name, delta in model.deltas.items():
            summed[name] = summed[name] + (project(delta[task], summed[name]) if is_linear(name) else delta[task])
    size = torch.cat([tensor.flatten() for tensor in summed.values()]).norm()
    return {name: tensor * model.flat().norm(dim=1).mean() / size for name, tensor in summed.items()}


def min_norm(first: Tensor, second: Tensor) -> float:
    """Share of `first` in the shortest convex combination, kept within (0.001, 0.999)."""
    aa, ab, bb = ((x * y).sum() for x, y in ((first, first), (first, second), (second, second)))
    if ab >= aa:
        return 0.999
    return 0.001 if ab >= bb else float((bb - ab) / (aa + bb - 2 * ab))


def dop(
    model: Model,
    steps: int = 200,
    lr: float = 1e-4,
    alpha: float = 0.8,
    ema: float = 0.999,
    energy: float = 0.99999,
) -> Tensors:
    def pair(deltas: Tensor) -> Tensor:
        forms = []
        for left, values, right in (svd(delta, full_matrices=False) for delta in deltas):
            cut = int((values.cumsum(0) / values.sum() < energy).sum())
            weights = values[:cut].square()
            forms.append(((left[:, :cut] * weights) @ left[:, :cut].T, (right[:cut].T * weights) @ right[:cut]))
        shares = [alpha, 1 - alpha]

        def gradient(found: Tensor) -> Tensor:
            slopes, losses = [], []
            for (rows, columns), delta in zip(forms, deltas, strict=True):
                away = found - delta
                slopes.append(2 * (rows @ away + away @ columns))
                losses.append((slopes[-1] * away).sum() / 2)
            solved = min_norm(*(slope / loss for slope, loss in zip(slopes, losses, strict=True)))
            shares[:] = [ema * old + (1 - ema) * new for old, new in zip(shares, (solved, 1 - solved), strict=True)]
            return shares[0] * slopes[0] + shares[1] * slopes[1]

        return adam(deltas.mean(0), gradient, steps, lr)

    merged = {name: delta[0] for name, delta in model.deltas.items()}
    for task in range(1, model.tasks):
        for name, delta in model.deltas.items():
            both = torch.stack([merged[name], delta[task]])
            merged[name] = pair(both) if is_linear(name) else both.mean(0)
    return merged


STEPS: Mapping[str, Callable[..., Any]] = {rule.__name__: rule for rule in (wudi, doge_ta, continual_ties, opcm, dop)}
