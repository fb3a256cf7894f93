"""θ0 + Σ_k λ_k τ_k in a tower, with a coefficient for each parameter and expert, and the gradient by them.

As θ is linear in λ, ∂L/∂λ_k = ⟨∂L/∂θ, τ_k⟩ for each parameter: no graph goes through the merge, and task vectors are
streamed from where they are stored; behind edits they are kept in a temporary file, edited once.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from clipfuse.checkpoints.checkpoint import task_vector
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.fusion.forward import Forward
from clipfuse.pool import Leaf, ModelPool, PoolView
from clipfuse.shapes import Float


@dataclass
class Mixture:
    """The merge of a view with given coefficients, in the tower that `forward` runs."""

    view: PoolView
    """Through the edits."""
    forward: Forward
    held: dict[str, Tensor] = field(default_factory=dict)
    """Task vectors (task, *shape) on the device of forward passes, if that is no CPU: they need not be copied again."""

    def __post_init__(self) -> None:
        self.view = replace(self.view, progress=None)
        self.names = [name for name in self.view.specs if name in self.forward.parameters]
        self.place = {name: number for number, name in enumerate(self.names)}
        if self.view.edits and self.forward.data.device.type == "cpu":
            self.view = self.edited_once()
        if self.forward.data.device.type != "cpu":
            device = self.forward.data.device
            self.held = dict(self.view.map(lambda leaf: (leaf.name, leaf.deltas.to(device)), "leaf"))

    def edited_once(self) -> PoolView:
        """The same task vectors, but in scratch behind the edits: these are not made anew at every step."""
        view, tasks = self.view, self.view.tasks
        specs = {name: TensorSpec((len(tasks), *spec.shape), torch.float32) for name, spec in view.specs.items()}
        edited = self.forward.run.scratch(specs)

        def keep(leaf: Leaf) -> None:
            rows = edited[leaf.name].view(len(tasks), -1)
            rows[:, leaf.start : leaf.start + leaf.numel] = leaf.deltas.flatten(1)

        for _ in view.map(keep):
            pass
        vectors = {task: {name: edited[name][row] for name in specs} for row, task in enumerate(tasks)}
        experts = {task: task_vector(tensors, task) for task, tensors in vectors.items()}
        return replace(view, pool=ModelPool(view.pool.base, experts), edits=(), grain="element")

    @torch.no_grad()
    def spread(self, coefficients: Float[Tensor, "parameter task"]) -> None:
        """Write θ0 + Σ_k λ_k τ_k into the tower."""
        rows = coefficients.float()
        if self.held:
            self.forward.load_base()
            for name, deltas in self.held.items():
                mixed = rows[self.place[name]].to(deltas) @ deltas.flatten(1)
                self.forward.parameters[name].add_(mixed.view(deltas.shape[1:]))
            return

        def write(leaf: Leaf) -> None:
            mixed = torch.addmv(leaf.base.flatten(), leaf.deltas.flatten(1).T, rows[self.place[leaf.name]])
            self.part(self.forward.parameters[leaf.name].detach(), leaf).copy_(mixed)

        for _ in self.view.map(write):
            pass

    @torch.no_grad()
    def pull_back(self) -> Float[Tensor, "parameter task"]:
        """∂L/∂λ from the tower's gradients; the sums over slices are float64."""
        found = torch.zeros(len(self.names), len(self.view.tasks), dtype=torch.float64)
        if self.held:
            for name, deltas in self.held.items():
                slope = self.forward.parameters[name].grad
                if slope is not None:
                    found[self.place[name]] = (deltas.flatten(1) @ slope.flatten()).double().cpu()
            return found.float()

        def product(leaf: Leaf) -> tuple[int, Tensor]:
            slope = self.forward.parameters[leaf.name].grad
            row = self.place[leaf.name]
            if slope is None:
                return row, torch.zeros(len(self.view.tasks), dtype=torch.float64)
            return row, (leaf.deltas.flatten(1) @ self.part(slope, leaf)).double()

        for row, value in self.view.map(product):
            found[row] += value
        return found.float()

    @staticmethod
    def part(whole: Tensor, leaf: Leaf) -> Tensor:
        """What of a parameter a leaf is, flattened."""
        return whole.view(-1)[leaf.start : leaf.start + leaf.numel].to(leaf.stored_experts[0].device)
