"""Model pools: a base, its experts, and the leaves that rules work on."""

from clipfuse.pool.clip_vision import HuggingFaceClipVisionPool
from clipfuse.pool.leaf import Leaf
from clipfuse.pool.model_pool import PRETRAINED, ModelPool, is_special, pool_from_memory, pool_of_deltas
from clipfuse.pool.view import PoolView

__all__ = [
    "PRETRAINED",
    "HuggingFaceClipVisionPool",
    "Leaf",
    "ModelPool",
    "PoolView",
    "is_special",
    "pool_from_memory",
    "pool_of_deltas",
]
