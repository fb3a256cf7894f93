"""The tiny suite: a small CLIP with eight experts, and eight small tasks to try them on, all offline.

Merging can be watched on it in seconds and without a network: the weights are really learned, the experts really
disagree. It says nothing about real CLIP models or real datasets, and no figure from it belongs in a comparison.

* `materialise(cache)` writes pictures and one task file (YAML) per task below `cache`, once, and returns the folder.
* `WEIGHTS` is the folder of the shipped models: `base/` (a complete CLIP in Hugging Face layout, with tokenizer and
  preprocessor) and one CLIP vision encoder per task, in a folder with the name of the task.

At run time it needs numpy and Pillow. `scripts/make_tiny.py` made everything that is shipped; docs/tiny.md tells how.
"""

from clipfuse.tiny.suite import WEIGHTS, materialise

__all__ = ["WEIGHTS", "materialise"]
