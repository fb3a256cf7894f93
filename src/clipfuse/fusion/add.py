"""`add`: one more expert for the result of a continual method, as if it had been merged with the others."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipfuse.checkpoints.checkpoint import Checkpoint
from clipfuse.checkpoints.locate import VISION, is_remote, locate
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import check_output
from clipfuse.errors import ConfigError, PoolError
from clipfuse.fusion.arrivals import Arrived
from clipfuse.fusion.chain import Chain, configure
from clipfuse.fusion.engine import after_arrivals, finished_leaf, merged_leaf, prepare, run
from clipfuse.fusion.merge import finished, look_at
from clipfuse.fusion.merged import STATE, Merged, load
from clipfuse.fusion.registry import METHODS
from clipfuse.pool import PRETRAINED, HuggingFaceClipVisionPool, ModelPool, PoolView, is_special, pool_from_memory
from clipfuse.pool.kinds import all_linearised
from clipfuse.pool.task_vector import TaskVector
from clipfuse.pool.view import Progress

Model = str | Path | nn.Module | TaskVector | Mapping[str, Any]
"""A folder or hub id, or a model in memory."""


def add(
    result: str | Path | Merged,
    expert: Model,
    *,
    name: str | None = None,
    base: Model | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    memory: int | str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Merged:
    """Merge one more expert into the result of a continual method.

    The same bits as merging it after the others at once; it reads the base, what is merged and the new expert.

    Args:
        result: What a continual method merged, or its folder or hub id; never changed.
        expert: Fine-tuned from the same base.
        name: What the expert is called; the last part of its path by default.
        base: Where the merge was of models in memory and has been written since, or the base has moved.
        out, overwrite, threads, memory, device, progress: As for `merge`.

    Raises:
        ConfigError: the method is not continual, or a finish looks at all experts.
        PoolError: no state to go on from, an expert that is merged already, of another geometry or forward pass, or
            another base.
        CheckpointError, LocateError, OutputError: as `merge`.
    """
    found = result if isinstance(result, Merged) else load(locate(str(result), (*VISION, STATE)).folder)
    where = "add" if isinstance(result, Merged) else str(result)
    if out is not None:
        check_output(Path(out), overwrite, found.tensors.files if isinstance(found.tensors, Checkpoint) else ())
    chain = chain_of(found.recipe, where)
    state = found.state
    if state is None:
        raise PoolError(f"{where}: has no {STATE} beside its weights, which adding goes on from")
    name = expert_name(name, expert, state.order)
    pool = pool_to_add(found, state, name, expert, base, where)
    if out is not None:
        check_output(Path(out), overwrite, [file for model in pool.checkpoints for file in model.files])
    view = replace(look_at(pool, threads, memory, device, progress), others=state.order)
    check_base(chain, view, found, state, where)
    prepared = prepare(chain, view, state)
    specs = {key: TensorSpec(tuple(tensor.shape), tensor.dtype) for key, tensor in found.tensors.items()}
    return finished(prepared, specs, out, overwrite, lambda sink: run(prepared, sink, specs))


def chain_of(recipe: Mapping[str, Any], where: str) -> Chain:
    """The chain of a merge, if an expert can be added to its result. Raises ConfigError."""
    if after := recipe.get("after"):
        raise ConfigError(f"{where}: {after['name']} was learned on these weights, not on those with another expert")
    chain = configure(recipe["method"], recipe.get("edits", ()), recipe.get("finishes", ()), recipe.get("seed", 0))
    if not chain.method.rule.continual:
        known = ", ".join(sorted(key for key, rule in METHODS.items() if rule.continual))
        raise ConfigError(f"{where}: {chain.method.rule.name} merges all experts at once; one is added to {known}")
    for step in chain.finishes:
        if step.rule.sees_experts:
            raise ConfigError(f"{where}: the finish {step.rule.name} looks at all experts: merge them at once")
    return replace(chain, chosen_on=tuple(recipe["uses"]), chosen_data=tuple(recipe.get("data", ())))


def expert_name(name: str | None, expert: Model, taken: tuple[str, ...]) -> str:
    """What the expert is called. Raises PoolError if another is called so."""
    if name is None and not isinstance(expert, (str, Path)):
        raise PoolError("name: is required for an expert in memory")
    name = name or str(expert).rstrip("/").rpartition("/")[2].partition("@")[0]
    if not name or is_special(name):
        raise PoolError(f"name: {name!r} is no name of an expert")
    if name in taken:
        raise PoolError(f"{name}: is merged already; what is new needs another name ({', '.join(taken)})")
    return name


def pool_to_add(found: Merged, state: Arrived, name: str, expert: Model, base: Model | None, where: str) -> ModelPool:
    """The base and the new expert; in its recipe the experts that are merged already too."""
    new = opened(name, expert)
    theta = opened("base", base).experts["base"] if base is not None else state.base or recipe_base(found, where)
    both = {where: found.geometry, name: new.geometry}
    all_linearised(both, {key: geometry for key, geometry in both.items() if geometry})
    of_base = found.geometry and found.geometry.model_copy(update={"linearised": False})
    known = {PRETRAINED: of_base, name: new.geometry}
    members = [*found.recipe["pool"], *new.members]
    geometries = {key: geometry for key, geometry in known.items() if geometry}
    pool = ModelPool(theta, {name: new.experts[name]}, geometries, members)
    shapes = {key: tuple(tensor.shape) for key, tensor in state.merged.items()}
    if shapes != {key: spec.shape for key, spec in pool.specs.items()}:
        raise PoolError(f"{where}: {STATE} has other parameters than the base")
    earlier = found.recipe.get("warnings", [])
    pool.warnings = [*earlier, *(text for text in pool.warnings if text not in earlier)]
    return pool


def opened(name: str, model: Model) -> ModelPool:
    """A pool of one model."""
    if isinstance(model, (str, Path)):
        return HuggingFaceClipVisionPool.from_tree({"models": [{"name": name, "path": str(model)}]}, name).weights
    return pool_from_memory({name: model})


def recipe_base(found: Merged, where: str) -> Checkpoint:
    """The base that a recipe names, at the revision that was merged. Raises PoolError if it names none."""
    member = next((m for m in found.recipe["pool"] if m["name"] == PRETRAINED and m.get("path")), None)
    if member is None:
        raise PoolError(f"{where}: its base is not in the recipe; pass it as base=")
    path, revision = member["path"], member.get("revision")
    if revision and is_remote(path):
        path = f"{path.partition('@')[0]}@{revision}"
    return opened("base", path).experts["base"]


def check_base(chain: Chain, view: PoolView, found: Merged, state: Arrived, where: str) -> None:
    """Raises PoolError if base and state do not give the merged weights of the smallest Linear layer."""
    before = after_arrivals(chain, view, state)
    leaves = (
        view.pool.leaf(name, device=view.device) for name in sorted(view.specs, key=lambda n: view.specs[n].numel)
    )
    leaf = next(leaf for leaf in leaves if leaf.is_linear)
    weights = finished_leaf(before, leaf, merged_leaf(before, leaf), chain.scaling_factor)
    stored = found.tensors[leaf.name]
    if not torch.equal(weights.to("cpu", stored.dtype), stored):
        raise PoolError(
            f"{where}: {leaf.name} is not what base and {STATE} give: this is another base, or a damaged merge"
        )
