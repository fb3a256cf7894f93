"""Sums over examples of a power of each one's own gradient, from one backward pass for all of them.

The gradient of an example's loss by a Linear's weight is Gᵀ X, where X (token, in) is what the layer was given and
G (token, out) the gradient of what it gave. So a pass that differentiates activations alone is enough: what the
examples' gradients add up to is made layer by layer, and no gradient is ever held, not even that of one example.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipfuse.errors import ModelError
from clipfuse.shapes import Float

Power = Literal[1, 2]
"""1 adds up magnitudes, 2 squares."""
Totals = Mapping[str, Tensor]
"""The sums of a module's parameters, by their names in it."""
Add = Callable[[nn.Module, Totals, Tensor, Tensor, Power], None]
"""`(module, sums, what it was given, gradient of what it gave, power)`; both tensors (example, …)."""

BLOCK = 1 << 21
"""Entries of an example's gradient that are made at a time: few enough to stay in cache, enough for several cores."""


@contextmanager
def add_gradients(modules: Mapping[str, nn.Module], sums: Mapping[str, Tensor], power: Power) -> Iterator[None]:
    """Inside, a backward pass from Σ_b ℓ_b adds Σ_b |∂ℓ_b/∂θ_j|^power to `sums`, in place.

    The loss of example b must depend on row b of the input alone, and the modules' parameters must not require
    gradients. On another device than `sums`, a layer's share is added up there and brought over once a pass. Besides
    its activations, a pass keeps what each Linear is given; each example takes a multiplication more for every entry
    of a weight and token that its loss depends on.

    Args:
        modules: A CLIPVisionModel under "", or other modules, by what stands before the names of their parameters.
        sums: A tensor for each parameter of the modules, by name.
        power: 1 or 2.

    Raises:
        ModelError: a module with parameters of a type that it does not know.
    """
    handles = []
    try:
        for prefix, module, add in workers(modules):
            totals = {name: sums[join(prefix, name)] for name, _ in module.named_parameters()}
            handles.append(module.register_forward_hook(hook(add, totals, power)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def workers(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module, Add]]:
    """(name, module, how to add) of the modules that have parameters of their own; embeddings count as one."""
    from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

    kinds: dict[type[nn.Module], Add] = {
        nn.Linear: add_linear,
        nn.LayerNorm: add_layer_norm,
        CLIPVisionEmbeddings: add_embeddings,
    }
    for name, module in modules.items():
        if next(module.parameters(), None) is None:
            continue
        if add := kinds.get(type(module)):
            yield name, module, add
        elif own := next((key for key, _ in module.named_parameters(recurse=False)), None):
            known = ", ".join(kind.__name__ for kind in kinds)
            kind = type(module).__name__
            raise ModelError(f"{join(name, own)}: belongs to a {kind}; gradients of single examples take {known}")
        else:
            yield from workers({join(name, key): child for key, child in module.named_children()})


def join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def hook(add: Add, totals: Totals, power: Power) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A forward hook that adds to `totals` as soon as the gradient of the module's output is there."""

    def watch(module: nn.Module, given: tuple[Tensor, ...], gave: Tensor) -> None:
        if not gave.requires_grad:  # the first layer's output: nothing before it is differentiated
            gave.requires_grad_()
        taken, dtype = given[0].detach(), next(iter(totals.values())).dtype  # autocast may have other ones
        gave.register_hook(lambda gradient: add(module, totals, taken.to(dtype), gradient.to(dtype), power))

    return watch


def add_linear(module: nn.Module, totals: Totals, given: Tensor, gradient: Tensor, power: Power) -> None:
    gradient = by_token(gradient)
    add_products(totals["weight"], gradient, by_token(given), power)
    if "bias" in totals:
        add_powers(totals["bias"], gradient.sum(1), power)


def add_layer_norm(module: nn.Module, totals: Totals, given: Tensor, gradient: Tensor, power: Power) -> None:
    assert isinstance(module, nn.LayerNorm)
    unit = functional.layer_norm(given, module.normalized_shape, eps=module.eps)
    for name, values in (("weight", gradient * unit), ("bias", gradient)):
        if name in totals:
            add_powers(totals[name], by_token(values).sum(1), power)


def add_embeddings(module: nn.Module, totals: Totals, given: Tensor, gradient: Tensor, power: Power) -> None:
    """Class and position are added to tokens as they are; a patch is multiplied like a Linear's token."""
    weight = totals["patch_embedding.weight"]
    side = weight.shape[-1]
    patches = functional.unfold(given, side, stride=side).transpose(1, 2)  # (example, patch, 3 · side · side)
    add_products(weight.view(len(weight), -1), gradient[:, 1:], patches, power)
    add_powers(totals["class_embedding"], gradient[:, 0], power)
    add_powers(totals["position_embedding.weight"], gradient, power)


def by_token(values: Tensor) -> Float[Tensor, "example token width"]:
    return values.unsqueeze(1) if values.ndim == 2 else values.flatten(1, -2)


def add_powers(total: Float[Tensor, "*shape"], gradients: Float[Tensor, "example *shape"], power: Power) -> None:
    """total += Σ_b |gradient_b|^power."""
    total.add_(gradients.abs().pow_(power).sum(0).to(total.device))


def add_products(
    total: Float[Tensor, "out in"],
    gradients: Float[Tensor, "example token out"],
    given: Float[Tensor, "example token in"],
    power: Power,
) -> None:
    """total += Σ_b |G_bᵀ X_b|^power, some rows at a time, so that they are read and written once for all examples."""
    if total.device != gradients.device:
        share = torch.zeros_like(total, device=gradients.device)
        add_products(share, gradients, given, power)
        total.add_(share.to(total.device))
        return
    reached = gradients.any(0).any(-1)  # of the last layer's outputs, the loss sees the class token's alone
    if not reached.all():
        gradients, given = gradients[:, reached], given[:, reached]
    if gradients.shape[1] == 1:  # |g xᵀ| = |g| |x|ᵀ: one product for all examples
        left, right = (values[:, 0].abs().pow_(power) for values in (gradients, given))
        total.addmm_(left.T, right)
        return
    gradients, given = gradients.contiguous(), given.contiguous()
    size = max(1, BLOCK // total.shape[1])
    room = torch.empty_like(total[:size])
    for at in range(0, len(total), size):
        rows = total[at : at + size]
        product = room[: len(rows)]
        for gradient, taken in zip(gradients, given, strict=True):
            torch.mm(gradient[:, at : at + size].T, taken, out=product)
            if power == 1:
                rows.add_(product.abs_())
            else:
                rows.addcmul_(product, product)
