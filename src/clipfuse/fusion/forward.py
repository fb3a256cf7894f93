"""A vision tower that a method runs: weights are copied into it, gradients come out by canonical names."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipfuse.checkpoints.names import PROJECTION, canonical_names
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.errors import ModelError
from clipfuse.fusion.streams import Run
from clipfuse.pool import Leaf, ModelPool, PoolView
from clipfuse.pool.view import one_torch_thread
from clipfuse.shapes import Float

if TYPE_CHECKING:
    from transformers import CLIPVisionModel


class Forward:
    """A float32 `CLIPVisionModel` in eval mode with a projection; at first its parameters require no gradient.

    Raises:
        ModelError: the pool's geometry is not known, or its models are linearised.
    """

    def __init__(self, run: Run):
        from clipfuse.models.build import build_vision_model

        geometry = run.view.pool.geometry
        if geometry is None:
            raise ModelError("the pool was made of state dicts, whose geometry is not known: give modules or folders")
        if geometry.linearised:
            raise ModelError("the experts are linearised: methods that look at data run ordinary towers only")
        self.run, self.view, self.data = run, run.view, run.data
        lead = self.view.pool.lead
        self.tower: CLIPVisionModel = build_vision_model(lead, geometry).requires_grad_(False)
        stored = dict(self.tower.named_parameters())
        self.places = canonical_names(stored, "the tower")
        nn.Module.to(self.tower, self.data.device)
        self.project = nn.Linear(*reversed(self.data.projection.shape), bias=False, device="meta")
        own = self.data.projection.to(self.data.device, copy=True)
        self.project.weight = nn.Parameter(own, requires_grad=False)
        self.parameters: dict[str, nn.Parameter] = {name: stored[place] for name, place in self.places.items()}
        if PROJECTION in self.view.specs:
            self.parameters[PROJECTION] = self.project.weight
        self.load_base()

    @property
    def projection(self) -> Float[Tensor, "embed width"]:
        """From pooled outputs to features."""
        return self.project.weight

    def room(self, specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
        """Zeros where forward passes are: on the CPU in scratch."""
        device = self.data.device
        if device.type == "cpu":
            return self.run.scratch(specs)
        return {name: torch.zeros(spec.shape, dtype=spec.dtype, device=device) for name, spec in specs.items()}

    def each(self, function: Callable[[str], object], names: Iterable[str]) -> None:
        """`function` of the names of parameters, on the view's threads, large ones first."""
        large_first = sorted(names, key=lambda name: -self.view.specs[name].numel)
        with one_torch_thread(), ThreadPoolExecutor(self.view.threads) as pool:
            for _ in pool.map(function, large_first):
                pass

    def module_of(self, name: str) -> nn.Module:
        """The module that owns a parameter."""
        if name == PROJECTION:
            return self.project
        return self.tower.get_submodule(self.places[name].rpartition(".")[0])

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights in, by canonical name."""
        for name, value in weights.items():
            self.parameters[name].copy_(value)

    def load_base(self) -> None:
        """θ0."""
        self.fill(replace(self.view, edits=(), grain="element"), lambda leaf: leaf.base)

    def load_expert(self, number: int) -> None:
        """Weights of an expert, by its place in the view, through the edits."""
        view, row = self.view, number
        if not view.edits:  # then the others need not be read
            task = view.tasks[number]
            view, row = replace(view, pool=ModelPool(view.pool.base, {task: view.pool.experts[task]})), 0
        self.fill(view, lambda leaf: leaf.experts[row])

    def fill(self, view: PoolView, values: Callable[[Leaf], Tensor]) -> None:
        """Set every parameter to `values` of its leaves."""
        names = frozenset(self.parameters)

        def write(leaf: Leaf) -> None:
            into = self.parameters[leaf.name].detach().view(-1)[leaf.start : leaf.start + leaf.numel]
            into.copy_(values(leaf).reshape(-1))

        for _ in replace(view, progress=None, only=names).map(write, "element"):
            pass

    def precise(self) -> AbstractContextManager[object]:
        """The precision of forward passes."""
        kind, precision = self.data.device.type, self.data.precision
        if precision in ("float32", "tf32"):
            return nullcontext()
        return torch.autocast(kind, getattr(torch, precision))

    def features(self, pixels: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch embed"]:
        """Image embeddings, not normalised, float32."""
        with self.precise():
            pooled = self.tower(pixel_values=pixels).pooler_output
        return self.project(pooled.float())

    def logits(self, task: str, pixels: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch class"]:
        """scale · normalise(features) · Wᵀ of the task of an expert, float32."""
        return self.logits_of(task, self.features(pixels))

    def logits_of(self, task: str, features: Float[Tensor, "batch embed"]) -> Float[Tensor, "batch class"]:
        """The same from features."""
        head = self.data.heads[task]
        unit = functional.normalize(features, dim=-1)
        return head.scale * unit @ head.weights.to(unit.device).T
