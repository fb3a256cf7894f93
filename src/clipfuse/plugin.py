"""What a file with methods, edits and finishes of one's own needs, in one import line.

    from clipfuse.plugin import DeltaConfig, Leaf, Paper, method

The file is then named as a plug-in: `--plugin my_rules.py`, or `clipfuse.load_plugin("my_rules.py")`.
"""

from clipfuse.config import Config, EmptyConfig
from clipfuse.errors import ConfigError
from clipfuse.fusion.blocks import Weights, total, weight_row, weighted_total
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, after, edit, finish, method
from clipfuse.fusion.streams import Run
from clipfuse.pool import Leaf, PoolView

__all__ = [
    "Config",
    "ConfigError",
    "DeltaConfig",
    "EmptyConfig",
    "Forward",
    "Leaf",
    "Paper",
    "PoolView",
    "Run",
    "Weights",
    "after",
    "edit",
    "finish",
    "method",
    "total",
    "weight_row",
    "weighted_total",
]
