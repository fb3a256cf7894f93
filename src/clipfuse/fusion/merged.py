"""What a merge returns: weights with their recipe, in memory or in the folder that they were written to."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from clipfuse.checkpoints.card import model_card
from clipfuse.checkpoints.checkpoint import Checkpoint, open_checkpoint
from clipfuse.checkpoints.geometry import Geometry, read_geometry
from clipfuse.checkpoints.json_file import read_json
from clipfuse.checkpoints.names import hub_name
from clipfuse.checkpoints.safetensors_file import SafetensorsFile, TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter, new_folder, write_text
from clipfuse.errors import CheckpointError, ModelError
from clipfuse.fusion.arrivals import Arrived
from clipfuse.fusion.task_tensors import TaskTensors, read_task_tensors, write_task_tensors

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

    from clipfuse.models.clip_base import ClipBase
    from clipfuse.models.encoder import VisionEncoder
    from clipfuse.models.per_task import PerTaskEncoder

RECIPE = "clipfuse.json"
STATE = "state.safetensors"
"""What a continual merge can go on from."""
SCHEMA = 1
KINDS = ("weights", "per_task")
NONE: Mapping[str, str] = MappingProxyType({})
NO_GEOMETRY = "the pool was made of state dicts, whose geometry is not known: merge modules or folders"


@dataclass(frozen=True)
class Merged:
    """A merged vision encoder: `kind`, tensors by canonical name, geometry and recipe."""

    tensors: Mapping[str, Tensor] = field(repr=False)
    recipe: Mapping[str, Any]
    geometry: Geometry | None = None
    kind: Literal["weights", "per_task"] = "weights"
    """How many sets of weights there are and what inference needs: one set, or one with tensors for each task."""
    state: Arrived | None = field(default=None, repr=False)
    """What a continual method has merged, for `clipfuse.add` to go on from."""
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Texts that its method leaves beside the weights, by file name: learned coefficients and their picture."""
    task_tensors: TaskTensors = field(default_factory=dict, repr=False)
    """Of kind per_task: the modules by the tasks' own names."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by the hub's names (`vision_model.encoder…`), as on disk; of kind per_task without the modules."""
        return {hub_name(name): tensor for name, tensor in self.tensors.items()}

    def load_model(self, dtype: "torch.dtype | None" = None) -> "CLIPVisionModel":
        """A transformers `CLIPVisionModel`, float32 unless `dtype` is given.

        Raises:
            ModelError: no geometry; a linearised model or one of kind per_task: a CLIPVisionModel has another forward
                pass.
        """
        from clipfuse.models.build import build_vision_model

        if self.kind != "weights":
            raise ModelError(f"the merge is of kind {self.kind}, a CLIPVisionModel has no modules; .encoder() has them")
        return build_vision_model(self.tensors, self.known_geometry, dtype)

    @property
    def config(self) -> dict[str, Any]:
        """Method, edits, finishes, what comes after and seed with all settings, as in YAML."""
        keys = ("method", "edits", "finishes", "after", "seed")
        return {key: self.recipe[key] for key in keys if key in self.recipe}

    def encoder(self, base: "ClipBase | None" = None) -> "VisionEncoder | PerTaskEncoder":
        """An encoder with the projection of `base` (by default the recipe's), for evaluation.

        Of kind per_task its features take the task's name.

        Raises:
            ModelError: no base is given and the recipe knows none.
        """
        from clipfuse.models.clip_base import known_base, open_base
        from clipfuse.models.encoder import build_encoder
        from clipfuse.models.per_task import PerTaskEncoder

        members = (m for m in self.recipe["pool"] if m["name"] == "_pretrained_" and m.get("path"))
        own = next((member["path"] for member in members), None)
        base = base or open_base(own or known_base(self.geometry, "this merge"))
        encoder = build_encoder(self.tensors, self.known_geometry, base)
        return PerTaskEncoder(encoder, self.task_tensors) if self.kind == "per_task" else encoder

    @property
    def known_geometry(self) -> Geometry:
        if self.geometry is None:
            raise ModelError(NO_GEOMETRY)
        return self.geometry

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write a Hugging Face folder with recipe and model card, whole or not at all.

        Raises:
            OutputError: the folder is not empty, no space, no permission.
        """
        specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in sorted(self.tensors.items())}
        with new_folder(Path(folder), overwrite) as temporary:
            write_description(temporary, self.recipe, self.known_geometry, self.files)
            with hub_writer(temporary, specs) as writer:
                for name, tensor in self.tensors.items():
                    writer.write(hub_name(name), tensor)
            if self.state:
                write_state(temporary, self.state)
            write_task_tensors(temporary, self.recipe, self.task_tensors)


def hub_writer(folder: Path, specs: Mapping[str, TensorSpec]) -> SafetensorsWriter:
    """A writer of `model.safetensors` under the hub's names."""
    return SafetensorsWriter(folder / "model.safetensors", {hub_name(name): spec for name, spec in specs.items()})


def write_state(folder: Path, state: Arrived) -> None:
    """S of a continual merge, a task vector in float32 under canonical names."""
    specs = {name: TensorSpec(tuple(tensor.shape), torch.float32) for name, tensor in sorted(state.merged.items())}
    with SafetensorsWriter(folder / STATE, specs, {"kind": "task_vector"}) as writer:
        for name in specs:
            writer.write(name, state.merged[name])


def read_state(folder: Path, recipe: Mapping[str, Any]) -> Arrived | None:
    """What a continual method has merged, None where it is not there. Raises CheckpointError if it is damaged."""
    path, arrivals = folder / STATE, recipe.get("arrivals")
    if not arrivals or not path.is_file():
        return None
    store = SafetensorsFile(path)
    merged = Checkpoint({name: (store, name) for name in store.specs}, str(path), (path,), is_delta=True)
    try:
        order, norms = tuple(map(str, arrivals["order"])), tuple(map(float, arrivals["norms"]))
        if len(order) != len(norms) or any(store.specs[name].dtype != torch.float32 for name in store.specs):
            raise ValueError
        return Arrived(merged, order, norms, float(arrivals["factor"]), Counter(recipe.get("measured", {})))
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder}: {RECIPE} and {STATE} are not those of a continual merge") from None


def write_description(
    folder: Path, recipe: Mapping[str, Any], geometry: Geometry, files: Mapping[str, str] = NONE
) -> None:
    """Everything of a merged folder but the weights: config.json, clipfuse.json, README.md, and `files`."""
    for name, text in files.items():
        write_text(folder / name, text)
    write_text(folder / "config.json", json.dumps(geometry.to_config(), indent=2) + "\n")
    write_text(folder / RECIPE, json.dumps(recipe, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "README.md", model_card(recipe))


def read_recipe(folder: Path) -> dict[str, Any] | None:
    """The recipe in a merged folder, None where there is none. Raises CheckpointError for a damaged one."""
    path = folder / RECIPE
    if not path.is_file():
        return None
    try:
        recipe = read_json(path)
        if recipe["schema"] > SCHEMA:
            raise CheckpointError(f"{path}: schema {recipe['schema']} is newer than this clipfuse knows ({SCHEMA})")
        if recipe["kind"] not in KINDS:
            raise CheckpointError(f"{path}: kind {recipe['kind']!r} is not known to this clipfuse")
        names = [recipe["method"]["name"], *(member["name"] for member in recipe["pool"])]
        places = [member.get("path") or "" for member in recipe["pool"]]
        if not all(names) or not all(isinstance(text, str) for text in (*names, *places)):
            raise ValueError("a name is empty")
        if not all(isinstance(member.get("files") or {}, dict) for member in recipe["pool"]):
            raise TypeError
        return recipe if isinstance(recipe["uses"], list) else recipe | {"uses": []}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        raise CheckpointError(f"{path}: is not the recipe of a merge") from None


def load(folder: str | Path) -> Merged:
    """Restore what `Merged.save` or `clipfuse merge --out` wrote; weights stay on disk until asked for.

    Raises:
        CheckpointError: not such a folder, or damaged.
    """
    folder = Path(folder)
    recipe = read_recipe(folder)
    if recipe is None:
        raise CheckpointError(f"{folder}: holds no {RECIPE}; clipfuse.load restores what clipfuse merged")
    tensors = open_checkpoint(folder, str(folder)).with_projection()
    names = [name for name in recipe.get("files", ()) if Path(name).name == name and (folder / name).is_file()]
    files = {name: (folder / name).read_text(encoding="utf-8") for name in names}
    state, learned = read_state(folder, recipe), read_task_tensors(folder, recipe)
    return Merged(tensors, recipe, read_geometry(folder), recipe["kind"], state, files, learned)
