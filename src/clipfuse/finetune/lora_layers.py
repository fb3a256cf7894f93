"""LoRA on a vision tower, without peft: low-rank layers beside frozen linear ones, plain or linearised."""

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipfuse.checkpoints.lora_config import listed
from clipfuse.checkpoints.names import canonical_names
from clipfuse.errors import ConfigError, unknown
from clipfuse.shapes import Float


class LoraLinear(nn.Module):
    """y = W x + b + s B A dropout(x), where W and b are frozen, A is (r, in), B (out, r) and s = α / r.

    A is drawn as peft's default is, uniform within ± 1 / √in; B begins at zero, and with it the layer as `base`.

    With `linearised` the layer is linear in (A, B) around where they begin, (A0, B0) (partial linearisation, Tang et
    al. 2023, arXiv:2310.04742): W x + b + s (B A0 x + B0 (A − A0) x). As B0 = 0 that is W x + b + s B A0 x, and A
    would get no gradient: it is frozen, and all else is the same.

    Args:
        base: Stays a part of the layer; its parameters no longer take gradients.
        rank: r.
        alpha: α.
        dropout: Share of x that A does not see in training.
        linearised: See above.
        generator: What A is drawn from, in float32 on the generator's device, whatever the base's are.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float,
        dropout: float,
        linearised: bool,
        generator: torch.Generator,
    ):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scaling = alpha / rank
        self.dropout = nn.Dropout(dropout)
        a = torch.empty(rank, base.in_features, device=generator.device)
        nn.init.kaiming_uniform_(a, a=sqrt(5), generator=generator)
        self.A = nn.Parameter(a.to(base.weight), requires_grad=not linearised)
        self.B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        self.train(base.training)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        inner = functional.linear(self.dropout(x), self.A)  # (*batch, r)
        return self.base(x) + functional.linear(inner * self.scaling, self.B)

    def weight(self) -> Float[Tensor, "out in"]:
        """W + s B A, float32, without a gradient."""
        with torch.no_grad():
            return self.base.weight.float() + (self.B.float() * self.scaling) @ self.A.float()


def add_lora(
    tower: nn.Module,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str],
    linearised: bool,
    generator: torch.Generator,
) -> dict[str, LoraLinear]:
    """Put a `LoraLinear` in the place of every targeted linear layer of a CLIPVisionModel, and freeze all else.

    Args:
        tower: Is changed.
        rank: r, of every layer.
        alpha: α; B A counts α / r times.
        dropout: See `LoraLinear`.
        targets: Names of modules or their ends, from a dot on, as in peft's `target_modules`: `q_proj`, `mlp.fc1`.
        linearised: See `LoraLinear`.
        generator: All A are drawn from it, in the order of the names.

    Returns:
        Canonical name of the module → layer, sorted.

    Raises:
        ConfigError: a target that no linear layer has, none, or a rank that a layer cannot have; nothing is changed.
    """
    linear = linear_layers(tower)
    if not targets:
        raise ConfigError("target_modules: takes at least one name, such as q_proj (found none)")
    for target in targets:
        if not any(listed(frozenset({target}), name) for name in linear):
            known = {".".join(name.split(".")[-1 - target.count(".") :]) for name in linear}
            raise ConfigError(f"target_modules: {unknown('linear layer', target, known)}")
    chosen = [name for name in sorted(linear) if listed(frozenset(targets), name)]
    for name in chosen:
        _, layer = linear[name]
        most = min(layer.in_features, layer.out_features)
        if not 1 <= rank <= most:
            raise ConfigError(f"rank: takes 1 to {most}, the smaller side of {name} (found {rank})")
    tower.requires_grad_(False)
    layers: dict[str, LoraLinear] = {}
    for name in chosen:
        stored, layer = linear[name]
        layers[name] = LoraLinear(layer, rank, alpha, dropout, linearised, generator)
        tower.set_submodule(stored, layers[name])
    return layers


def linear_layers(tower: nn.Module) -> dict[str, tuple[str, nn.Linear]]:
    """Canonical name of each linear layer → its name in the tower, and itself."""
    modules = dict(tower.named_modules())
    names = canonical_names((name for name, _ in tower.named_parameters()), "the vision tower")
    stems = {name.removesuffix(".weight"): stored.removesuffix(".weight") for name, stored in names.items()}
    found = ((name, stored, modules.get(stored)) for name, stored in stems.items())
    return {name: (stored, module) for name, stored, module in found if isinstance(module, nn.Linear)}


def merged_weights(layers: Mapping[str, LoraLinear]) -> dict[str, Tensor]:
    """Canonical name of each layer's weight → W + s B A, float32, on the layer's device."""
    return {f"{name}.weight": layer.weight() for name, layer in layers.items()}
