"""What is trained of a vision tower, and what comes out of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from clipfuse.checkpoints.geometry import Geometry
from clipfuse.checkpoints.names import canonical_names
from clipfuse.finetune.lora_layers import LoraLinear, add_lora, merged_weights
from clipfuse.finetune.recipe import Recipe
from clipfuse.models.build import build_vision_model
from clipfuse.models.linearised import LinearisedTower
from clipfuse.order import seed_of


@dataclass
class Trained:
    """A tower in training; all that is not among `parameters` is frozen."""

    tower: nn.Module
    """Called like a `CLIPVisionModel`."""
    parameters: Mapping[str, nn.Parameter]
    """What the optimiser changes, by a name that says which."""
    start: Mapping[str, Tensor]
    """The base's weights by canonical name, float32: what task vectors are differences from."""
    layers: Mapping[str, LoraLinear] = field(default_factory=dict)
    """Adapted layers of a LoRA by canonical name."""
    initial: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """A0 and B0 of adapted layers that are linear around them."""

    @property
    def inner(self) -> nn.Module:
        """transformers' own tower."""
        return self.tower.tower if isinstance(self.tower, LinearisedTower) else self.tower

    @property
    def linearised(self) -> bool:
        """Whether its features are the first-order expansion around the base's weights."""
        return isinstance(self.tower, LinearisedTower)

    def weights(self) -> dict[str, Tensor]:
        """Full weights by canonical name, float32, on the CPU."""
        if isinstance(self.tower, LinearisedTower):
            found = dict(self.tower.weights())
        elif self.layers:
            found = {**self.start, **merged_weights(self.layers)}
        else:
            stored = dict(self.tower.named_parameters())
            found = {name: stored[place] for name, place in canonical_names(stored, "the tower").items()}
        return {name: value.detach().float().cpu() for name, value in found.items()}

    def moved(self) -> dict[str, Tensor]:
        """The task vector θ − θ0 of every parameter that has moved, float32."""
        weights = self.weights()
        return {n: weights[n] - old for n, old in self.start.items() if not torch.equal(weights[n], old)}


def make_trained(
    base: Mapping[str, Tensor], geometry: Geometry, recipe: Recipe, start: Mapping[str, Tensor] | None = None
) -> Trained:
    """A tower with the base's weights, or those of the expert `start`, and what a recipe trains of it.

    Raises:
        ConfigError: a LoRA that does not fit the tower.
    """
    tower = build_vision_model(base, geometry)
    if recipe.gradient_checkpointing:
        checkpoint_activations(tower)
    origin = {name: base[name].float().clone() for name in base}
    if recipe.train == "lora":
        random = torch.Generator().manual_seed(seed_of(recipe.seed, "lora"))
        how = recipe.rank, recipe.lora_alpha, recipe.lora_dropout, recipe.target_modules, recipe.linearised
        layers = add_lora(tower, *how, random)
        initial = {n: (x.A.detach().clone(), x.B.detach().clone()) for n, x in layers.items()}
        parameters = {n: p for n, p in tower.named_parameters() if p.requires_grad}
        return Trained(tower, parameters, origin, layers, initial if recipe.linearised else {})
    stored = dict(tower.named_parameters())
    names = canonical_names(stored, "the tower")
    chosen = [name for name in sorted(names) if recipe.train == "full" or is_of_attention(name)]
    here = start or origin
    if recipe.linearised:
        linear = LinearisedTower(tower, {name: here[name].float() - origin[name] for name in chosen})
        return Trained(linear, linear.deltas, origin)
    for parameter in stored.values():
        parameter.requires_grad_(False)
    with torch.no_grad():
        for name, place in names.items():
            stored[place].copy_(here[name])
    parameters = {name: stored[names[name]] for name in chosen}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return Trained(tower, parameters, origin)


def is_of_attention(name: str) -> bool:
    """The matrices W_q, W_k, W_v and W_o, as Jin et al. (2024) train; biases stay."""
    return ".self_attn." in name and name.endswith(".weight")


def checkpoint_activations(tower: nn.Module) -> None:
    """Let a tower compute activations again in its backward pass, by the name that its transformers has for that."""
    enable: Any = getattr(tower, "activation_checkpointing_enable", None) or tower.gradient_checkpointing_enable
    enable({"use_reentrant": False})
