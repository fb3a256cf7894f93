"""Spherical interpolation of two models."""

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor

from clipfuse.config import Config
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import method
from clipfuse.pool import Leaf
from clipfuse.shapes import Float

SLERP = Paper("Animating Rotation with Quaternion Curves", "Shoemake, Ken", 1985, "", "SIGGRAPH")

NEARLY_PARALLEL = 0.9995
"""|cos| above which the arc is a straight line in float32."""


class Slerp(Config):
    """θ = (sin((1−t)Ω) θ_a + sin(tΩ) θ_b) / sin Ω, per tensor; Ω is the angle between θ_a and θ_b."""

    t: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Way from the first expert (0) to the second (1)."""


@method(paper=SLERP, grain="leaf", returns="weights", models=2)
def slerp(leaf: Leaf, cfg: Slerp) -> Float[Tensor, "*shape"]:
    """Spherical linear interpolation of two models, tensor by tensor (Shoemake, 1985).

    θ = (sin((1−t)Ω) θ_a + sin(tΩ) θ_b) / sin Ω with cos Ω = ⟨θ_a, θ_b⟩ / (‖θ_a‖ ‖θ_b‖); linear if |cos Ω| > 0.9995
    or where a tensor is zero. One pass. Needs no base; with exactly two experts.

    Source: section 3.3; per tensor as mergekit and FusionBench do.
    """
    a, b = leaf.experts
    norms = math.sqrt(a.double().square().sum().item() * b.double().square().sum().item())
    cosine = (a.double() * b.double()).sum().item() / norms if norms else 1.0
    if abs(cosine) > NEARLY_PARALLEL:
        return a * (1 - cfg.t) + b * cfg.t
    angle = math.acos(cosine)
    return a * (math.sin((1 - cfg.t) * angle) / math.sin(angle)) + b * (math.sin(cfg.t * angle) / math.sin(angle))
