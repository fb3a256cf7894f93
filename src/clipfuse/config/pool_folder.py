"""A folder of models as a pool: the layouts that authors publish, and folders of transformers' side by side."""

from pathlib import Path
from typing import Any

from clipfuse.errors import ConfigError

PRETRAINED = "_pretrained_"
BASES = ("zeroshot.pt", "nonlinear_zeroshot.pt")
"""What the pre-trained model is called by the task-arithmetic authors, and in the 20-task checkpoints."""
EXPERTS = ("finetuned.pt", "nonlinear_finetuned.pt")
"""What an expert is called there, in a folder named after its task."""
WEIGHTS = ("config.json", "adapter_config.json", "open_clip_config.json")
"""What a model's folder has in the hub's layouts."""


def folder_pool(folder: Path) -> dict[str, Any]:
    """The tree of the pool that a folder is, as in a pool's YAML.

    * `zeroshot.pt` and `<task>/finetuned.pt`: the task-arithmetic authors'; `<task>Val/nonlinear_finetuned.pt` with
      its `nonlinear_zeroshot.pt`: the 20-task checkpoints.
    * `_pretrained_/` and `<task>/`, each a model in a layout of the hub.

    Raises:
        ConfigError: it holds neither.
    """
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    experts: dict[str, Path] = {}
    for path in (path / name for path in inside for name in EXPERTS if (path / name).is_file()):
        name = path.parent.name.removesuffix("Val")
        if name in experts and experts[name].parent != path.parent:
            raise ConfigError(f"modelpool={folder}: {name} and {name}Val are one task; takes one of these folders")
        experts[name] = path
    if experts:
        places = [folder, *inside]
        bases = [place / name for place in places for name in BASES if (place / name).is_file()]
    else:
        models = {path.name: path for path in inside if any((path / name).is_file() for name in WEIGHTS)}
        bases = [models.pop(PRETRAINED)] if PRETRAINED in models else []
        experts = models
    if not experts:
        takes = f"<task>/{EXPERTS[0]}, or a folder for each model"
        raise ConfigError(f"modelpool={folder}: this folder is no pool; it takes {takes}")
    found = {PRETRAINED: bases[0]} if bases else {}
    members = [{"name": name, "path": str(path)} for name, path in (found | experts).items()]
    return {"type": "huggingface_clip_vision", "models": members}
