"""Linearised (NTK) vision towers: the first-order expansion of a tower around the weights that it was pre-trained to.

Ortiz-Jimenez, Favero and Frossard (2023), "Task Arithmetic in the Tangent Space", arXiv:2305.12827.
"""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from clipfuse.checkpoints.names import canonical_names
from clipfuse.errors import ModelError
from clipfuse.shapes import Float

if TYPE_CHECKING:
    from transformers import CLIPVisionModel
    from transformers.modeling_outputs import BaseModelOutputWithPooling


class LinearisedTower(nn.Module):
    """f(x; θ0) + J(x; θ0) τ, f a vision tower's pooled output: linear in τ, which alone is learnt.

    It stands where a `CLIPVisionModel` stands, and gives a `pooler_output`. The projection that follows is linear too.

    The value is one pass of forward-mode differentiation, primal and tangent together: the work of three forward
    passes. As θ0 learns nothing, only the tangent has a graph, and its transpose costs two more; a step takes five
    where an ordinary one takes three, and about 1.5 times the memory for activations. There is no gradient by the
    pixels.

    Gradient checkpointing cannot compute a part of that again when the pass is over. But a loss with gradient g by the
    output has the gradient Jᵀ g by τ, whatever τ is: where the tower's gradient checkpointing is on (not reentrant),
    the value is taken without a graph and backward runs the tower itself at θ0, forward and backward: one pass more.

    Args:
        tower: At θ0. It is frozen, stays in eval mode and is switched to eager attention, as the fused kernels have no
            forward-mode derivative: nobody else may use it.
        deltas: τ by canonical name, of those parameters only that may differ from θ0; copied, in the tower's dtype.

    Raises:
        ModelError: a name or shape that is none of the tower's parameters.
    """

    def __init__(self, tower: "CLIPVisionModel", deltas: Mapping[str, Tensor]):
        super().__init__()
        load_forward_mode()
        self.places = canonical_names(dict(tower.named_parameters()), "the tower")
        tower.set_attn_implementation("eager")
        self.tower = tower.requires_grad_(False).eval()
        self.config = deepcopy(tower.config)
        self.config.linearised = True
        self.tau = nn.ParameterDict()
        origin = self.origin
        for name, delta in deltas.items():
            its = origin.get(name)
            if its is None or its.shape != delta.shape:
                wanted = "not there" if its is None else tuple(its.shape)
                raise ModelError(f"{name}: the task vector's is {tuple(delta.shape)}, the tower's {wanted}")
            self.tau[key_of(name)] = nn.Parameter(delta.detach().to(its, copy=True))

    @property
    def dtype(self) -> torch.dtype:
        """Of the tower."""
        return self.tower.dtype

    @property
    def origin(self) -> dict[str, nn.Parameter]:
        """The parameters θ0, by canonical name."""
        stored = dict(self.tower.named_parameters())
        return {name: stored[place] for name, place in self.places.items()}

    @property
    def deltas(self) -> dict[str, nn.Parameter]:
        """The parameters τ, by canonical name."""
        return {name: self.tau[key_of(name)] for name in self.places if key_of(name) in self.tau}

    def weights(self) -> dict[str, Tensor]:
        """θ0 + τ by canonical name, float32: what a folder holds."""
        found = {name: value.detach().float() for name, value in self.origin.items()}
        return found | {name: found[name] + delta.detach().float() for name, delta in self.deltas.items()}

    def train(self, mode: bool = True) -> "LinearisedTower":
        """The expansion is that of a tower in eval mode, always."""
        super().train(mode)
        self.tower.eval()
        return self

    @torch.compiler.disable  # it cannot trace dual numbers
    def forward(  # type: ignore[override]
        self, pixel_values: Float[Tensor, "batch 3 height width"]
    ) -> "BaseModelOutputWithPooling":
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        again = torch.is_grad_enabled() and bool(self.checkpointed())
        with torch.no_grad() if again else nullcontext():
            pooled = self.value(pixel_values)
        if again:
            pooled = WithGradient.apply(self, pixel_values, pooled, *self.deltas.values())
        return BaseModelOutputWithPooling(pooler_output=pooled)  # type: ignore[arg-type]

    def value(self, pixels: Tensor) -> Float[Tensor, "batch width"]:
        """f(x; θ0) + J τ."""
        origin = self.origin
        with forward_ad.dual_level():
            duals = {
                self.places[name]: forward_ad.make_dual(origin[name].detach(), delta)
                for name, delta in self.deltas.items()
            }
            pooled = functional_call(self.tower, duals, (), {"pixel_values": pixels}).pooler_output
            primal, tangent = forward_ad.unpack_dual(pooled)
            return primal if tangent is None else primal + tangent

    def checkpointed(self) -> list[nn.Module]:
        """The tower's layers that are computed again in backward."""
        return [module for module in self.tower.modules() if getattr(module, "gradient_checkpointing", False)]

    def pulled_back(self, pixels: Tensor, gradient: Tensor, autocast: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Jᵀ g for τ's parameters in order: gradients of the tower at θ0."""
        origin = self.origin
        learnt = [origin[name] for name in self.deltas]
        layers = self.checkpointed()
        try:
            for module in layers:  # transformers checkpoints layers in training; what is in them stays in eval mode
                module.training = True
            for parameter in learnt:
                parameter.requires_grad_(True)
            with torch.enable_grad(), torch.autocast(**autocast):
                pooled = self.tower(pixel_values=pixels).pooler_output
            return torch.autograd.grad(pooled, learnt, gradient.to(pooled.dtype))
        finally:
            for parameter in learnt:
                parameter.requires_grad_(False)
            for module in layers:
                module.training = False


class WithGradient(torch.autograd.Function):
    """The value of a `LinearisedTower` as it is; in backward Jᵀ g, in the precision that autocast has forward."""

    @staticmethod
    def forward(ctx: Any, tower: LinearisedTower, pixels: Tensor, value: Tensor, *deltas: Tensor) -> Tensor:
        kind = pixels.device.type
        enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        ctx.tower, ctx.autocast = tower, {"device_type": kind, "enabled": enabled, "dtype": dtype}
        ctx.save_for_backward(pixels)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (pixels,) = ctx.saved_tensors
        return None, None, None, *ctx.tower.pulled_back(pixels, gradient, ctx.autocast)


@cache
def load_forward_mode() -> None:
    """Let torch import its forward-mode rules, which it does at the first dual number and with warnings of its own."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))


def key_of(name: str) -> str:
    """What `nn.Module` lets a parameter be called."""
    return name.replace(".", "/")
