"""OpenAI's and OpenCLIP's names of parameters, and transformers': two tables, read in both directions.

OpenCLIP keeps query, key and value of an attention in one `in_proj`, and its projections transposed. Names of ours
are those of a CLIPModel on disk: `vision_model.…`, `text_model.…`, `visual_projection.weight`.
"""

import re
from collections.abc import Iterable
from typing import Literal

from clipfuse.errors import CheckpointError

Part = Literal["whole", "transposed", "q", "k", "v"]
"""What of a stored tensor a parameter is: a third of its rows, in this order, for q, k and v."""

VISION, TEXT = "vision_model.", "text_model."

WHOLE: dict[str, tuple[str, Part]] = {
    "visual.class_embedding": ("vision_model.embeddings.class_embedding", "whole"),
    "visual.conv1.weight": ("vision_model.embeddings.patch_embedding.weight", "whole"),
    "visual.positional_embedding": ("vision_model.embeddings.position_embedding.weight", "whole"),
    "visual.ln_pre.weight": ("vision_model.pre_layrnorm.weight", "whole"),
    "visual.ln_pre.bias": ("vision_model.pre_layrnorm.bias", "whole"),
    "visual.ln_post.weight": ("vision_model.post_layernorm.weight", "whole"),
    "visual.ln_post.bias": ("vision_model.post_layernorm.bias", "whole"),
    "visual.proj": ("visual_projection.weight", "transposed"),
    "token_embedding.weight": ("text_model.embeddings.token_embedding.weight", "whole"),
    "positional_embedding": ("text_model.embeddings.position_embedding.weight", "whole"),
    "ln_final.weight": ("text_model.final_layer_norm.weight", "whole"),
    "ln_final.bias": ("text_model.final_layer_norm.bias", "whole"),
    "text_projection": ("text_projection.weight", "transposed"),
    "logit_scale": ("logit_scale", "whole"),
}
"""Theirs → ours."""

BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""The same inside a block."""

THEIR_BLOCK = re.compile(r"(?P<tower>visual\.)?transformer\.resblocks\.(?P<layer>\d+)\.(?P<rest>.+)")
OUR_BLOCK = re.compile(r"(?P<tower>vision_model|text_model)\.encoder\.layers\.(?P<layer>\d+)\.(?P<rest>.+)")

COUNTED = ("attn_mask", "input_resolution", "context_length", "vocab_size", "logit_bias")
"""Buffers and numbers beside the parameters."""


def outer_prefix(stored: Iterable[str]) -> str | None:
    """What stands before `visual.` in the names of a checkpoint in this layout; None if it is in another.

    `model.` in the task-arithmetic authors' files. A bare vision tower, whose names begin with `conv1.`, has none
    of `visual.`: its prefix is None too, see `bare_tower`.
    """
    names = set(stored)
    for name in names:
        if name.endswith("visual.conv1.weight"):
            outer = name.removesuffix("visual.conv1.weight")
            if f"{outer}visual.class_embedding" in names:
                return outer
    return None


def bare_tower(stored: Iterable[str]) -> bool:
    """Whether these are the names of a vision tower alone, `conv1.weight`, `transformer.resblocks.…`."""
    return {"conv1.weight", "class_embedding", "ln_post.weight"} <= set(stored)


def ours(name: str) -> list[tuple[str, Part]]:
    """The parameters of ours that are in a tensor of theirs (a name from `visual.` on); none if it is not known."""
    if name in WHOLE:
        return [WHOLE[name]]
    block = THEIR_BLOCK.fullmatch(name)
    if block is None:
        return []
    stem = f"{VISION if block['tower'] else TEXT}encoder.layers.{block['layer']}."
    if block["rest"] in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = block["rest"].removeprefix("attn.in_proj_")
        return [(f"{stem}self_attn.{part}_proj.{kind}", part) for part in ("q", "k", "v")]
    module, _, kind = block["rest"].rpartition(".")
    return [(f"{stem}{BLOCK[module]}.{kind}", "whole")] if module in BLOCK and kind in ("weight", "bias") else []


def theirs(name: str) -> tuple[str, Part]:
    """The tensor of theirs that a parameter of ours is in. Raises CheckpointError for a name that CLIP lacks."""
    if name in INVERSE:
        return INVERSE[name]
    block = OUR_BLOCK.fullmatch(name)
    module, _, kind = block["rest"].rpartition(".") if block else ("", "", "")
    if block and kind in ("weight", "bias"):
        stem = f"{'visual.' if block['tower'] == 'vision_model' else ''}transformer.resblocks.{block['layer']}."
        if module in INVERSE_BLOCK:
            return f"{stem}{INVERSE_BLOCK[module]}.{kind}", "whole"
        if module in ATTENTION:
            return f"{stem}attn.in_proj_{kind}", ATTENTION[module]
    raise CheckpointError(f"{name}: OpenCLIP has no such parameter")


INVERSE: dict[str, tuple[str, Part]] = {ours: (theirs, part) for theirs, (ours, part) in WHOLE.items()}
INVERSE_BLOCK = {ours: theirs for theirs, ours in BLOCK.items()}
ATTENTION: dict[str, Part] = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v"}
