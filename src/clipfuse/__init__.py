"""clipfuse: fuse CLIP-ViT models for open-vocabulary image classification, and measure what came out.

Names are imported when they are first used: `import clipfuse` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clipfuse.version import __version__

if TYPE_CHECKING:
    from clipfuse.errors import ClipfuseError
    from clipfuse.fusion.add import add
    from clipfuse.fusion.loading import load_plugin
    from clipfuse.fusion.merge import merge
    from clipfuse.fusion.merged import Merged, load
    from clipfuse.fusion.sweep import sweep
    from clipfuse.models.build import substitute
    from clipfuse.pool import HuggingFaceClipVisionPool, ModelPool
    from clipfuse.run.finetune import fine_tune
    from clipfuse.run.lend import open_data
    from clipfuse.stats.factor_cache import keep_factors

HOMES = {
    "ClipfuseError": "clipfuse.errors",
    "HuggingFaceClipVisionPool": "clipfuse.pool",
    "Merged": "clipfuse.fusion.merged",
    "ModelPool": "clipfuse.pool",
    "add": "clipfuse.fusion.add",
    "fine_tune": "clipfuse.run.finetune",
    "keep_factors": "clipfuse.stats.factor_cache",
    "load": "clipfuse.fusion.merged",
    "load_plugin": "clipfuse.fusion.loading",
    "merge": "clipfuse.fusion.merge",
    "open_data": "clipfuse.run.lend",
    "substitute": "clipfuse.models.build",
    "sweep": "clipfuse.fusion.sweep",
}

__all__ = [
    "ClipfuseError",
    "HuggingFaceClipVisionPool",
    "Merged",
    "ModelPool",
    "__version__",
    "add",
    "fine_tune",
    "keep_factors",
    "load",
    "load_plugin",
    "merge",
    "open_data",
    "substitute",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'clipfuse' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
