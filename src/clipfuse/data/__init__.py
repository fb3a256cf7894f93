"""Images and labels of a task's splits, preprocessed as CLIP does."""

from clipfuse.data.preprocess import Preprocess, read_preprocess
from clipfuse.data.splits import Split, blocks, open_split

__all__ = ["Preprocess", "Split", "blocks", "open_split", "read_preprocess"]
