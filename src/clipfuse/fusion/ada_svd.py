"""AdaSVD: how much of each expert a Linear layer gets, by how its inputs fall into what the expert has learned from."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from clipfuse.fusion.blocks import weighted_total
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, method
from clipfuse.fusion.walk import STEM, Walk, floats
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float
from clipfuse.stats.spectra import leading

SMILE = Paper(
    "SMILE: Zero-Shot Sparse Mixture of Low-Rank Experts Construction From Pre-Trained Foundation Models",
    "Tang, Anke and Shen, Li and Luo, Yong and Xie, Shuai and Hu, Han and Zhang, Lefei and Du, Bo and Tao, Dacheng",
    2024,
    "2408.10174",
)
SPECTRA = ("spectra.factorisations", "spectra.fallback")
"""What `leading` counts."""


class AdaSvd(DeltaConfig):
    """Δ = Σ_i g_i τ_i per Linear, g_i = mean over tokens x of softmax_i ‖V_iᵀx‖, V_i the first k of SVD(τ_i)."""

    images: Annotated[int, Field(ge=1, examples=[6])] = 256
    """Training images of each expert's task."""
    k: Annotated[int, Field(ge=1)] = 16
    """Right singular vectors of every τ_i that inputs are projected to."""


class Routed:
    """The Linears of one layer: the base's, and every expert's difference on top, weighed anew for each token."""

    def __init__(self, walk: Walk, run: Any, k: int):
        self.walk, self.k, experts = walk, k, len(walk.view.tasks)
        self.linears = [name for name, part in walk.layer(0).named_modules() if isinstance(part, nn.Linear)]
        shapes = {name: walk.deltas[f"{name}.weight"].shape for name in self.linears}
        self.gates = run.scratch(floats({n: (experts, min(k, *s[1:]), s[2]) for n, s in shapes.items()}))
        """V_iᵀ (expert, k, in) of the layer that was read last; rows of zeros where τ_i has fewer directions."""
        self.lent: dict[str, Tensor] = {}
        """Gates and task vectors on the device."""
        self.routed = torch.zeros(len(self.linears), experts, dtype=torch.float64)
        """Σ_x r_i(x) over the tokens that have come through."""
        self.counts = torch.zeros(walk.layers, 2, dtype=torch.int64)
        """Factorisations of each layer, and how many of them took the last resort."""

    def read(self, layer: int) -> None:
        """Load a layer, and find every expert's gate."""
        tallies: list[Counter[str]] = []

        def find(name: str, leaf: Leaf) -> None:
            linear = name.removesuffix(".weight")
            if leaf.is_matrix and linear in self.gates:
                for gate, delta in zip(self.gates[linear], leaf.deltas, strict=True):
                    directions = leading(delta, self.k, leaf.tally).vh
                    gate.zero_()[: len(directions)].copy_(directions)
            tallies.append(leaf.tally)

        self.walk.read(layer, find)
        self.walk.load(layer, {})
        for place, what in enumerate(SPECTRA):
            self.counts[layer, place] = sum(tally[what] for tally in tallies)
        placed = {**{f"{name}.gate": gate for name, gate in self.gates.items()}, **self.walk.deltas}
        self.lent = {name: tensor.to(self.walk.device) for name, tensor in placed.items()}

    @contextmanager
    def routing(self, layer: int) -> Iterator[None]:
        """Inside, the layer's Linears add the experts' shares to what the base's give."""

        def route(number: int, name: str) -> Callable[..., Tensor]:
            def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                with torch.autocast(output.device.type, enabled=False):
                    rows, added = args[0].flatten(0, -2).float(), output.flatten(0, -2).float()
                    shares = self.shares(name, rows)
                    self.routed[number] += shares.sum(0, dtype=torch.float64).cpu()
                    if (bias := self.lent.get(f"{name}.bias")) is not None:
                        added.addmm_(shares, bias)
                    for share, delta in zip(shares.unbind(1), self.lent[f"{name}.weight"], strict=True):
                        added.addmm_(rows * share[:, None], delta.mT)
                    return added.view_as(output).to(output.dtype)

            return hook

        module = self.walk.layer(layer)
        with ExitStack() as hooks:
            for number, name in enumerate(self.linears):
                handle = module.get_submodule(name).register_forward_hook(route(number, name))
                hooks.callback(handle.remove)
            yield

    def shares(self, name: str, rows: Float[Tensor, "token in"]) -> Float[Tensor, "token expert"]:
        """r_i(x) = softmax_i ‖V_iᵀx‖."""
        gate = self.lent[f"{name}.gate"]
        falls = torch.mm(rows, gate.flatten(0, 1).mT).unflatten(1, gate.shape[:2])
        return falls.norm(dim=2).softmax(1)

    def merged(self, tokens: int) -> Iterator[tuple[str, Tensor]]:
        """Σ_i g_i τ_i of the layer's weights and biases, by their names within it; the sums are empty afterwards."""
        for name, sums in zip(self.linears, self.routed, strict=True):
            for part in ("weight", "bias"):
                if (deltas := self.walk.deltas.get(f"{name}.{part}")) is not None:
                    yield f"{name}.{part}", weighted_total(deltas, (sums / tokens).tolist())
        self.routed.zero_()


@method(paper=SMILE, grain="leaf", uses=("train_images",))
def ada_svd(view: PoolView, cfg: AdaSvd, run: Any) -> Iterator[tuple[str, Tensor]]:
    """A mixture of experts routed by singular vectors, put back into one model (FusionBench, after Tang et al., 2024).

    Layer by layer, every Linear becomes y = W0 x + b0 + Σ_i r_i(x) (τ_i x + δb_i), r(x) = softmax_i ‖V_iᵀx‖, V_i the k
    leading right singular vectors of τ_i. With g_i the mean of r_i(x) over all tokens of all tasks' images, Δ = Σ_i
    g_i τ_i and Σ_i g_i δb_i. What the routed layer gives is the next layer's input. All other parameters stay the
    base's. Σ_i g_i = 1, so that this is about as long as the mean; scaling_factor = T gives task arithmetic's size. It
    has no part in the statistics.

    One pass over the pool; over the images of all tasks together one forward pass with T + 1 times the products; a
    few triplets of every τ_i. In scratch: hidden states of all images (315 MB for eight ViT-B/32), the task vectors
    of a layer, Δ.

    Deviations: a τ_i of lower rank than k has only the directions that stand out of its rounding, where the published
    code takes what its SVD fills up with; it leaves a Linear as it is in the base, bias and all, where no expert has
    moved the weight; and it can average the other parameters (`average_experts`, off for the figures).

    Source: FusionBench's AdaSVDMergingForCLIPVisionModel; routing as in SMILE, section 3.2.
    """
    walk, tasks = Walk(run, cfg.images), view.tasks
    routed, entered = Routed(walk, run, cfg.k), None
    linear = {f"{name}.{part}" for name in routed.linears for part in ("weight", "bias")}
    inside = [whole for layer in range(walk.layers) for name, whole in walk.names(layer).items() if name in linear]
    found = run.scratch(floats({name: view.specs[name].shape for name in inside}))
    tokens = sum(states.shape[0] * states.shape[1] for states in walk.hidden.values())
    state = {f"delta {name}": delta for name, delta in found.items()} | walk.state
    state |= {"routed": routed.routed, "counts": routed.counts}
    walk.load(STEM, {})
    for step in run.steps(walk.layers * len(tasks), state, "ada_svd"):
        layer, number = divmod(step, len(tasks))
        task = tasks[number]
        if layer != entered:
            routed.read(layer)
            entered = layer
        with routed.routing(layer):
            for place, hidden in walk.inputs(task, layer):
                walk.hidden[task][place] = walk.through(layer, hidden)
        if number == len(tasks) - 1:
            for name, delta in routed.merged(tokens):
                found[walk.names(layer)[name]].copy_(delta)
    for what, count in zip(SPECTRA, routed.counts.sum(0).tolist(), strict=True):
        run.tally[what] += count
    yield from found.items()
    for name in view.specs.keys() - found.keys():
        yield name, torch.zeros(view.specs[name].shape)
