"""What rules that look at gradients of single images share."""

from collections.abc import Mapping
from contextlib import AbstractContextManager

from torch import Tensor, nn

from clipfuse.checkpoints.names import PROJECTION
from clipfuse.fusion.forward import Forward
from clipfuse.pool import Leaf
from clipfuse.stats.per_example import Power, add_gradients


def gradients_by_image(forward: Forward, sums: Mapping[str, Tensor], power: Power) -> AbstractContextManager[None]:
    """Inside, a backward pass from Σ_b ℓ_b adds Σ_b |∂ℓ_b/∂θ_j|^power to `sums`, by canonical name."""
    modules: dict[str, nn.Module] = {"": forward.tower}
    if PROJECTION in forward.parameters:
        modules[PROJECTION.removesuffix(".weight")] = forward.module_of(PROJECTION)
    return add_gradients(modules, sums, power)


def part(leaf: Leaf, whole: Mapping[str, Tensor]) -> Tensor:
    """What of the tensors of a model a leaf is, flattened; a view."""
    return whole[leaf.name].view(-1)[leaf.start : leaf.start + leaf.numel]
