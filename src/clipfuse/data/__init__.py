"""Images and labels of a task's splits: opened, checked, preprocessed as CLIP does, cached, in blocks."""

from clipfuse.data.blocks import Block, ImageSet, blocks, make_ready, open_images
from clipfuse.data.corrupted import Corruption
from clipfuse.data.preprocess import Preprocess, read_preprocess
from clipfuse.data.splits import Split, open_split

__all__ = [
    "Block",
    "Corruption",
    "ImageSet",
    "Preprocess",
    "Split",
    "blocks",
    "make_ready",
    "open_images",
    "open_split",
    "read_preprocess",
]
