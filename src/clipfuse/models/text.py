"""The text tower over many prompts: beginnings that prompts share are computed once, nothing is padded.

Prompts of zero-shot heads begin alike (`a photo of a …`), and in a causal transformer the beginning does not depend on
what follows. Of the twenty tasks' 62,000 tokens about half are left to compute.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

from clipfuse.shapes import Float

if TYPE_CHECKING:
    from transformers import CLIPTextModelWithProjection

TOKENS = 1024
"""Tokens of a forward pass: their activations stay in the caches."""
SHARED = 32
"""Prompts that must begin alike for the beginning to be computed apart."""

Memory = list[tuple[Tensor, Tensor]]
"""Keys and values of a beginning in every layer, (head, token, channel) each."""


@torch.no_grad()
def text_features(
    model: "CLIPTextModelWithProjection", tokens: Sequence[Sequence[int]]
) -> Float[Tensor, "prompt embed"]:
    """Text embeddings in the shared space, unit length, of prompts as token ids that end with the end token."""
    tower: Any = getattr(model, "text_model", model)
    found = torch.empty(len(tokens), model.text_projection.out_features)
    memories: dict[tuple[int, ...], Memory] = {}
    starts = beginnings(tokens)
    for rows in batches([(len(start), len(ids)) for start, ids in zip(starts, tokens, strict=True)]):
        for start in {starts[row] for row in rows} - memories.keys():
            memories[start] = remember(tower, start)
        length = len(starts[rows[0]])
        rest = torch.tensor([tokens[row][length:] for row in rows])
        found[rows] = normalize(
            model.text_projection(last_state(tower, rest, [memories[starts[row]] for row in rows])), dim=-1
        )
    return found


def beginnings(tokens: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Of each prompt the longest beginning, short of the whole, that enough prompts share; perhaps an empty one."""
    counts = Counter(tuple(ids[:end]) for ids in tokens for end in range(1, len(ids)))
    return [
        next((start for end in range(len(ids) - 1, 0, -1) if counts[start := tuple(ids[:end])] >= SHARED), ())
        for ids in tokens
    ]


def batches(lengths: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Rows of equal lengths (of the beginning, of the whole), as many together as make about `TOKENS` tokens."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        start, whole = lengths[row]
        if batch and (lengths[row] != lengths[batch[0]] or len(batch) * (whole - start) >= TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def remember(tower: Any, start: Sequence[int]) -> Memory:
    """Keys and values of a beginning in every layer."""
    state, memory = embed(tower, torch.tensor([list(start)], dtype=torch.int64), 0), []
    for layer in tower.encoder.layers:
        query, key, value = attended(layer, state)
        memory.append((key[0], value[0]))
        state = through(layer, state, query, key, value)
    return memory


def last_state(tower: Any, rest: Tensor, memories: Sequence[Memory]) -> Float[Tensor, "prompt width"]:
    """The end token's state after the last layer of prompts (prompt, token) that go on from their beginnings."""
    state = embed(tower, rest, memories[0][0][0].shape[1] if memories[0] else 0)
    layers = list(tower.encoder.layers)
    for number, layer in enumerate(layers):
        query, key, value = attended(layer, state)
        before = [memory[number] for memory in memories]
        key = torch.cat([torch.stack([k for k, _ in before]), key], dim=2)
        value = torch.cat([torch.stack([v for _, v in before]), value], dim=2)
        if layer is layers[-1]:  # only the end token is looked at
            state, query = state[:, -1:], query[:, :, -1:]
        state = through(layer, state, query, key, value)
    return tower.final_layer_norm(state[:, -1])


def embed(tower: Any, ids: Tensor, place: int) -> Tensor:
    """Embeddings (prompt, token, width) of tokens that stand from `place` on."""
    positions = tower.embeddings.position_embedding.weight[place : place + ids.shape[1]]
    return tower.embeddings.token_embedding(ids) + positions


def attended(layer: Any, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, (prompt, head, token, channel) each."""
    attention, normed = layer.self_attn, layer.layer_norm1(state)
    shape = (*state.shape[:2], attention.num_heads, state.shape[2] // attention.num_heads)
    query, key, value = (
        project(normed).view(shape).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return query, key, value


def through(layer: Any, state: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The state after a layer; each token sees itself and what stands before it."""
    asked, known = query.shape[2], key.shape[2]
    seen = torch.ones(asked, known, dtype=torch.bool).tril(known - asked)
    mixed = scaled_dot_product_attention(query, key, value, seen).transpose(1, 2).flatten(2)
    state = state + layer.self_attn.out_proj(mixed)
    return state + layer.mlp(layer.layer_norm2(state))
