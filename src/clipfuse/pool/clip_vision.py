"""The pool of `type: huggingface_clip_vision`: CLIP vision encoders from folders and the hub."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipfuse.checkpoints.applied import applied
from clipfuse.checkpoints.checkpoint import Checkpoint, open_checkpoint
from clipfuse.checkpoints.geometry import Geometry, find_geometry
from clipfuse.checkpoints.hashes import known_hash
from clipfuse.checkpoints.locate import CLIP, VISION, Located, OutOfReachError, is_remote, locate
from clipfuse.checkpoints.lora import other_base
from clipfuse.config import parse
from clipfuse.config.fusionbench import translate
from clipfuse.errors import CheckpointError, LocateError, PoolError, unknown
from clipfuse.pool.config import Member, PoolConfig
from clipfuse.pool.kinds import check_kind
from clipfuse.pool.leaf import Leaf
from clipfuse.pool.model_pool import PRETRAINED, ModelPool, is_special
from clipfuse.pool.task_vector import TaskVector

if TYPE_CHECKING:
    import torch
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPVisionModel


class HuggingFaceClipVisionPool:
    """A pool of CLIP vision encoders: `_pretrained_` (the base) and experts fine-tuned from it.

    Nothing is located before it is needed, and no weights are read before a rule or a model asks for them.

    Args:
        config: The checked configuration; see `from_yaml` for the usual way in.

    Examples:
        >>> pool = HuggingFaceClipVisionPool.from_yaml("clip-vit-base-patch32_TA8")
        >>> pool.model_names
        ('sun397', 'stanford_cars', 'resisc45', 'eurosat', 'svhn', 'gtsrb', 'mnist', 'dtd')
    """

    def __init__(self, config: PoolConfig):
        self.config = config
        self.members = config.members
        self.opened: dict[str, Checkpoint] = {}

    @classmethod
    def from_yaml(cls, path: str | Path) -> "HuggingFaceClipVisionPool":
        """Read a pool from a YAML file or a preset's name.

        Raises:
            ConfigError: no such file or preset, or not the YAML of a pool.
        """
        from clipfuse.config.presets import load_preset

        return cls.from_tree(load_preset("modelpool", str(path)), where=str(path))

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], where: str = "modelpool") -> "HuggingFaceClipVisionPool":
        """Check an already parsed configuration, FusionBench's words too. Raises ConfigError."""
        ours, _ = translate({"modelpool": dict(tree)})
        return cls(parse(PoolConfig, ours["modelpool"], where))

    @property
    def all_model_names(self) -> tuple[str, ...]:
        """Names of all models, special ones too, in order."""
        return tuple(self.members)

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the experts, in order."""
        return tuple(name for name in self.members if not is_special(name))

    @property
    def has_pretrained(self) -> bool:
        """Whether there is a base (`_pretrained_`)."""
        return PRETRAINED in self.members

    def __len__(self) -> int:
        """Number of experts."""
        return len(self.model_names)

    def __contains__(self, name: object) -> bool:
        return name in self.members

    def __iter__(self) -> Iterator[Leaf]:
        """Leaves: each parameter across the pool, sorted by name."""
        return iter(self.weights)

    def get_model_config(self, name: str) -> Member:
        """Name and path of a model. Raises PoolError for an unknown name."""
        if name not in self.members:
            raise PoolError(unknown("model", name, self.members))
        return self.members[name]

    @cached_property
    def located(self) -> dict[str, Located]:
        """Where each model is on this machine, downloaded if need be.

        Raises:
            LocateError: models that are not to be found; all of them are named, and the command that fetches them.
        """
        return locate_all({name: member.ref for name, member in self.members.items()})

    @cached_property
    def weights(self) -> ModelPool:
        """The opened checkpoints, checked against each other. Raises CheckpointError or PoolError."""
        names = [name for name in self.members if not is_special(name) or name == PRETRAINED]
        checkpoints = {name: self.open(name) for name in names}
        geometries = {name: self.geometry(name) for name in names if not checkpoints[name].is_delta}
        base = checkpoints.pop(PRETRAINED, None)
        pool = ModelPool(base, checkpoints, geometries, [self.describe(name) for name in names])
        found = {n: other_base(self.located[n].folder, self.members[PRETRAINED].path) for n in names if pool.base}
        pool.warnings += [f"{n}: is an adapter of {o}; the pool's base is another" for n, o in found.items() if o]
        return pool

    def open(self, name: str) -> Checkpoint:
        """The checkpoint of a model, opened once. Raises CheckpointError, which names it."""
        if name not in self.opened:
            member, base = self.get_model_config(name), None
            if self.has_pretrained and name != PRETRAINED:
                base = self.open(PRETRAINED)
            check_kind(member, self.located[name].folder)
            try:
                self.opened[name] = open_checkpoint(self.located[name].folder, member.ref, base)
            except CheckpointError as error:
                raise CheckpointError(f"{name}: {error}") from None
        return self.opened[name]

    def full(self, name: str) -> Checkpoint:
        """The full weights of a model, of one that is stored as a task vector too. Raises as `open`."""
        found = self.open(name)
        if not found.is_delta:
            return found
        if not self.has_pretrained:
            raise PoolError(f"{name}: is stored as a difference from a base; the pool has no _pretrained_ model")
        return applied(self.open(PRETRAINED), found)

    def describe(self, name: str) -> dict[str, Any]:
        """Name, path, revision, and sha256 by file as far as known: what a recipe says of a model."""
        at = self.located[name]
        files = self.open(name).files
        path = at.ref if is_remote(at.ref) or at.ref.startswith("pkg://") else str(Path(at.ref).expanduser().absolute())
        return {"name": name, "path": path, "revision": at.revision, "files": {f.name: known_hash(f) for f in files}}

    def geometry(self, name: str) -> Geometry:
        """Geometry of a model's vision tower."""
        full = self.full(name)
        return self.geometry(PRETRAINED) if self.open(name).is_delta else find_geometry(self.located[name].folder, full)

    def load_model(self, name: str, dtype: "torch.dtype | None" = None) -> "CLIPVisionModel":
        """A model as a transformers `CLIPVisionModel`, float32 unless `dtype` says otherwise.

        Raises:
            PoolError: an unknown name.
            ModelError: a linearised model.
        """
        from clipfuse.models.build import build_vision_model

        return build_vision_model(self.full(name), self.geometry(name), dtype)

    def load_pretrained_model(self, dtype: "torch.dtype | None" = None) -> "CLIPVisionModel":
        """The base. Raises PoolError if there is none."""
        if not self.has_pretrained:
            raise PoolError("the pool has no _pretrained_ model")
        return self.load_model(PRETRAINED, dtype)

    def load_pretrained_or_first_model(self, dtype: "torch.dtype | None" = None) -> "CLIPVisionModel":
        """The base, or in a pool without one the first model."""
        return self.load_model(PRETRAINED if self.has_pretrained else self.all_model_names[0], dtype)

    def models(self) -> Iterator["CLIPVisionModel"]:
        """The experts, loaded one after the other."""
        return (model for _, model in self.named_models())

    def named_models(self) -> Iterator[tuple[str, "CLIPVisionModel"]]:
        """Names and experts, loaded one after the other."""
        return ((name, self.load_model(name)) for name in self.model_names)

    def load_clip_model(self, name: str = PRETRAINED) -> "CLIPModel":
        """The base's full `CLIPModel` with the vision encoder of `name` in it.

        Raises:
            PoolError: no base, an unknown name.
        """
        from clipfuse.models.build import load_clip_model, substitute

        base = self.get_model_config(PRETRAINED).ref
        clip = load_clip_model(locate(base, CLIP).folder)
        if name == PRETRAINED:
            return clip
        if own := self.full(name).projection:
            store, stored = own
            clip.visual_projection.weight.data.copy_(store.read(stored))
        return substitute(clip, self.load_model(name))

    def load_processor(self) -> "CLIPImageProcessorPil":
        """The image processor of the base (or first model), always transformers' Pillow one."""
        from clipfuse.models.build import load_image_processor

        first = PRETRAINED if self.has_pretrained else self.all_model_names[0]
        return load_image_processor(locate(self.members[first].ref, CLIP).folder)

    def task_vector(self, name: str) -> TaskVector:
        """τ = θ − θ0 of an expert, float32. Raises PoolError for an unknown name or a pool without a base."""
        self.get_model_config(name)
        if not self.has_pretrained:
            raise PoolError("a task vector needs a base; the pool has no _pretrained_ model")
        return TaskVector.between(self.weights.base, self.weights.experts[name], self.weights.geometry)

    def save_model(self, model: "CLIPVisionModel", path: str | Path, overwrite: bool = False) -> None:
        """Write a `CLIPVisionModel` as a Hugging Face folder with the hub's `vision_model.` names.

        transformers ≥ 5.6 itself may write names that 4.x takes for missing and initialises at random.
        """
        from clipfuse.models.build import save_vision_model

        save_vision_model(model, Path(path), overwrite)


def locate_all(paths: Mapping[str, str], needs: Sequence[str] = VISION) -> dict[str, Located]:
    """Locate many models at once; those out of reach are named together, with the command that fetches them."""

    def attempt(path: str) -> Located | LocateError:
        try:
            return locate(path, needs)
        except LocateError as error:
            return error

    with ThreadPoolExecutor(8) as threads:
        found = dict(zip(paths, threads.map(attempt, paths.values()), strict=True))
    failed = {name: error for name, error in found.items() if isinstance(error, LocateError)}
    if not failed:
        return {name: at for name, at in found.items() if isinstance(at, Located)}
    first = next((error for error in failed.values() if not isinstance(error, OutOfReachError)), None)
    if first is not None:
        raise first
    names = ", ".join(f"{name} ({paths[name]})" for name in list(failed)[:3]) + (" …" if len(failed) > 3 else "")
    raise OutOfReachError(
        f"{next(iter(failed.values()))}; {len(failed)} of {len(paths)} models are missing: {names}; "
        "with a connection, run: clipfuse fetch modelpool=NAME_OR_FILE"
    )
