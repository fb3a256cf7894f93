"""What a vision encoder's parameters are called: one table a source, all to our canonical names.

Canonical are the names of a CLIPVisionModel of transformers ≥ 5.6, without prefix
(`encoder.layers.0.self_attn.q_proj.weight`). On disk we write what the hub has always had
(`vision_model.encoder…`), which transformers 4.x and 5.x both load.
"""

from collections.abc import Iterable

from clipfuse.errors import CheckpointError

PREFIX = "vision_model."

PROJECTION = "visual_projection.weight"
"""From the tower's output into the space shared with text. It is the base's; only the task-arithmetic authors' experts
have one of their own, which then is one more parameter."""

ROOTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
"""What canonical names begin with (`pre_layrnorm` is transformers' spelling)."""

BUFFERS = ("embeddings.position_ids",)
"""Stored by transformers before 4.31; counted from the geometry, never merged."""

ELSEWHERE = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
"""Parts of a full CLIPModel that belong to the base and are never merged."""


def canonical_names(stored: Iterable[str], where: str) -> dict[str, str]:
    """Canonical name → stored name, in stored order; found from the names' structure, never from a version.

    Raises:
        CheckpointError: the names are not those of a CLIP vision encoder in transformers' layout.
    """
    stored = list(stored)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in stored) else ""
    found: dict[str, str] = {}
    strangers = []
    for name in stored:
        bare = name.removeprefix(prefix)
        if name.startswith(prefix) and bare.startswith(ROOTS):
            if bare not in BUFFERS:
                found[bare] = name
        elif not name.startswith(ELSEWHERE):
            strangers.append(name)
    if not found:
        shown = ", ".join(stored[:3]) or "nothing"
        raise CheckpointError(f"{where}: holds no CLIP vision encoder in transformers' layout (its tensors: {shown} …)")
    if strangers:
        raise CheckpointError(f"{where}: {len(strangers)} tensors do not belong to a CLIP model, e.g. {strangers[0]!r}")
    return found


def hub_name(name: str) -> str:
    """Canonical → as written on disk."""
    return name if name == PROJECTION else PREFIX + name
