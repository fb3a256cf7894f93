"""A base and its experts as checkpoints that fit together."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from clipfuse.checkpoints.checkpoint import Checkpoint, common_dtype, from_memory, task_vector
from clipfuse.checkpoints.geometry import Geometry, misfit
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.errors import PoolError
from clipfuse.pool.kinds import all_linearised
from clipfuse.pool.leaf import Leaf
from clipfuse.pool.projections import with_projections
from clipfuse.pool.room import Room
from clipfuse.pool.task_vector import TaskVector

PRETRAINED = "_pretrained_"


def is_special(name: str) -> bool:
    """Names that begin and end with `_` are not experts; `_pretrained_` is the base."""
    return len(name) > 1 and name.startswith("_") and name.endswith("_")


class ModelPool:
    """A base (or None) and named experts with the same parameters; iterating yields whole leaves, sorted by name.

    `warnings` names what is allowed but worth knowing (mixed dtypes); `geometry` is the base's or first expert's,
    if `geometries` (by name, as far as known) has it, linearised where the experts are; `members` describes each model
    for the recipe.

    Raises:
        PoolError: no experts, or a model whose names, shapes, geometry or forward pass differ.
    """

    def __init__(
        self,
        base: Checkpoint | None,
        experts: Mapping[str, Checkpoint],
        geometries: Mapping[str, Geometry] | None = None,
        members: list[dict[str, Any]] | None = None,
    ):
        if not experts:
            raise PoolError("the pool has no experts: every model in it is special (its name begins and ends with '_')")
        self.base, self.experts, remarks = with_projections(base, experts)
        self.members = members or [{"name": name} for name in ([PRETRAINED] if base else []) + list(experts)]
        self.tasks = tuple(self.experts)
        self.has_deltas = any(expert.is_delta for expert in self.experts.values())
        self.checkpoints: list[Checkpoint] = [*([] if self.base is None else [self.base]), *self.experts.values()]
        self.lead = self.checkpoints[0]
        self.specs: dict[str, TensorSpec] = {name: self.lead.spec(name) for name in sorted(self.lead)}
        for task, expert in self.experts.items():
            self.check(task, expert)
        self.warnings = self.mixed_dtypes() + remarks
        self.geometry = self.common_geometry(geometries or {})

    def check(self, task: str, expert: Checkpoint) -> None:
        first = PRETRAINED if self.base is not None else self.tasks[0]
        for name, spec in self.specs.items():
            if name in expert and expert.spec(name).shape != spec.shape:
                raise PoolError(
                    f"{task}: another geometry: {name} is {expert.spec(name).shape} in {expert.source}, "
                    f"{spec.shape} in {first}"
                )
        if odd := sorted(set(expert) - set(self.specs) if expert.is_delta else set(self.specs) ^ set(expert)):
            who = f"lacks {odd[0]!r}, which {first} has" if odd[0] in self.specs else f"has {odd[0]!r}, {first} not"
            raise PoolError(f"{task}: {who} ({len(odd)} parameters differ)")

    def common_geometry(self, geometries: Mapping[str, Geometry]) -> Geometry | None:
        """The geometry of the merge: what all known ones agree with, and the tensors; None if none is known."""
        linearised = all_linearised(self.tasks, geometries)
        first = PRETRAINED if PRETRAINED in geometries else next(iter(geometries), None)
        if first is None:
            return None
        lead, shapes = geometries[first], {name: spec.shape for name, spec in self.specs.items()}
        if first == PRETRAINED and lead.linearised:
            raise PoolError(f"{first}: is linearised; a base is what models are expanded around")
        for name, found in geometries.items():
            for key in ("num_attention_heads", "patch_size", "image_size", "layer_norm_eps"):
                if vars(found)[key] != vars(lead)[key]:
                    raise PoolError(
                        f"{name}: another geometry: {key} is {vars(found)[key]}, {first}'s {vars(lead)[key]}"
                    )
            if wrong := misfit(found, shapes):
                raise PoolError(f"{name}: weights and config.json do not fit: {wrong}")
            if found.hidden_act != lead.hidden_act:
                self.warnings.append(f"{name}: activation {found.hidden_act}, {first}'s {lead.hidden_act}")
        return lead.model_copy(update={"linearised": linearised})

    def mixed_dtypes(self) -> list[str]:
        models = ([(PRETRAINED, self.base)] if self.base else []) + list(self.experts.items())
        dtypes = {name: str(common_dtype(model)).removeprefix("torch.") for name, model in models}
        found = (
            [f"mixed dtypes: {', '.join(f'{n} {d}' for n, d in dtypes.items())}"]
            if len(set(dtypes.values())) > 1
            else []
        )
        if "bfloat16" in dtypes.values():
            found.append("bfloat16 storage costs about 15 % of a task vector (float16 2 %)")
        return found

    @property
    def nbytes(self) -> int:
        """Bytes stored, all models together."""
        return sum(checkpoint.nbytes for checkpoint in self.checkpoints)

    def __len__(self) -> int:
        """Number of experts."""
        return len(self.experts)

    def __iter__(self) -> Iterator[Leaf]:
        return (self.leaf(name) for name in self.specs)

    def leaf(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | str = "cpu",
        room: Room | None = None,
        **extra: Any,
    ) -> Leaf:
        """The leaf of a parameter, or of its elements `start` to `stop` when flattened, on a device.

        With `room`, of a slice, it lies there, until the next one does.
        """

        def part(number: int, checkpoint: Checkpoint) -> torch.Tensor:
            found = None if room is None or stop is None else room.read(number, name, start, stop - start)
            if found is None:
                found = self.stored(name, checkpoint)
                found = found if stop is None else found.reshape(-1)[start:stop]
            return found.to(device)

        parts = [part(number, checkpoint) for number, checkpoint in enumerate(self.checkpoints)]
        base = None if self.base is None else parts.pop(0)
        native = tuple(expert.is_delta for expert in self.experts.values()) if self.has_deltas else ()
        untouched = self.has_deltas and not any(name in expert for expert in self.experts.values())
        if room is not None:
            extra |= {"room": room.deltas, "together": room.together(parts)}
        return Leaf(name, self.tasks, base, tuple(parts), native, untouched, start, **extra)

    def stored(self, name: str, checkpoint: Checkpoint) -> torch.Tensor:
        """A parameter of one of the models; zeros where a task vector lacks it."""
        return checkpoint[name] if name in checkpoint else torch.zeros(()).expand(self.specs[name].shape)

    def release(self, name: str) -> None:
        """Let go of mapped pages of a parameter in every model."""
        for checkpoint in self.checkpoints:
            if name in checkpoint:
                checkpoint.release(name)

    def unmoved(self) -> list[str]:
        """Experts whose weights are the base's, so that their task vectors are zero. Mostly looks at a few bytes."""
        base = self.base
        if base is None:
            return []

        def moved(expert: Checkpoint) -> bool:
            if expert.is_delta:
                return any(bool(expert[name].any()) for name in expert)
            return any(not torch.equal(*(m[name].reshape(-1)[:HEAD] for m in (expert, base))) for name in base) or any(
                not torch.equal(expert[name], base[name]) for name in base
            )

        return [task for task, expert in self.experts.items() if not moved(expert)]


HEAD = 256
"""Leading elements of each parameter that are compared first."""


def pool_of_deltas(deltas: Mapping[str, Mapping[str, torch.Tensor]]) -> ModelPool:
    """A pool whose experts are task vectors by canonical name; without a base. Raises PoolError as any pool."""
    return ModelPool(None, {name: task_vector(tensors, name) for name, tensors in deltas.items()})


def pool_from_memory(
    models: Mapping[str, nn.Module | Mapping[str, Any] | TaskVector], geometry: Geometry | None = None
) -> ModelPool:
    """A pool over modules, state dicts or task vectors by name; `_pretrained_` is the base. Nothing is copied.

    `geometry` is that of models which carry none.

    Raises:
        PoolError, CheckpointError: as for any pool.
    """
    checkpoints = {
        name: task_vector(weights.tensors, name) if isinstance(weights, TaskVector) else from_memory(weights, name)
        for name, weights in models.items()
    }
    base = checkpoints.pop(PRETRAINED, None)
    experts = {name: checkpoint for name, checkpoint in checkpoints.items() if not is_special(name)}
    known = {name: geometry_of(models[name]) or geometry for name in ([PRETRAINED] if base else []) + list(experts)}
    return ModelPool(base, experts, {name: found for name, found in known.items() if found})


def geometry_of(model: Any) -> Geometry | None:
    """The geometry of a task vector, or of a transformers module that carries a configuration; None if not known."""
    if isinstance(model, TaskVector):
        return model.geometry
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return None
    tree = config.to_dict()
    return Geometry.model_validate(tree.get("vision_config", tree))
