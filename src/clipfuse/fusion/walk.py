"""A vision tower walked layer by layer: all pictures go through a layer before the next one's weights are loaded.

Hidden states before a layer lie in a temporary file, so that nothing is computed twice, and of the weights, task
vectors and statistics those of one layer are in work at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.streams import Run
from clipfuse.pool import Leaf
from clipfuse.shapes import Float

TOKENS = 1_600
"""Most tokens in a batch, but for pictures that have more: activations of ViT-L stay below 100 MB."""
STEM = -1
"""The part before the first layer: the embeddings and the LayerNorm behind them."""

Batches = Iterator[tuple[slice, Float[Tensor, "picture token width"]]]
"""Which of a task's pictures, and their hidden states, on the device."""


class Walk:
    """Pictures of every expert's task on their way through a tower whose parts are loaded one by one.

    A part is `STEM` or the number of a layer. Within it parameters go by their names without `encoder.layers.N.`.

    Raises:
        ConfigError: the method does not declare that it looks at train_images.
        ModelError: as `Forward`.
    """

    def __init__(self, run: Run, images: int):
        self.view, self.forward = run.view, Forward(run)
        self.device = run.data.device
        self.tower = self.forward.tower
        self.layers = len(self.tower.encoder.layers)
        self.sets = {task: run.data.images(task, "train") for task in self.view.tasks}
        self.rows = {task: found.choice(images) for task, found in self.sets.items()}
        tokens, width = self.view.specs["embeddings.position_embedding.weight"].shape
        self.batch = max(1, TOKENS // tokens)
        shapes = {task: (len(rows), tokens, width) for task, rows in self.rows.items()}
        self.hidden = run.scratch(floats(shapes))
        """Each task's hidden states, for the method to put there what comes out of a part."""
        inside = {name: self.view.specs[whole].shape for part in (STEM, 0) for name, whole in self.names(part).items()}
        self.deltas = run.scratch(floats({name: (len(self.rows), *shape) for name, shape in inside.items()}))
        """τ (task, *shape), through the edits, of the stem and of the layer that were read last."""

    @property
    def state(self) -> dict[str, Tensor]:
        """What a later layer depends on, besides the weights."""
        return {f"hidden {task}": states for task, states in self.hidden.items()}

    def names(self, part: int) -> dict[str, str]:
        """The canonical names of a part's parameters, by their names within it."""
        if part == STEM:
            return {name: name for name in self.view.specs if name.startswith(("embeddings.", "pre_layrnorm."))}
        prefix = f"encoder.layers.{part}."
        return {name.removeprefix(prefix): name for name in self.view.specs if name.startswith(prefix)}

    def read(self, part: int, also: Callable[[str, Leaf], object] | None = None) -> None:
        """All experts' task vectors of a part, into `deltas`; `also` gets every name within it and its leaf."""
        inside = {whole: name for name, whole in self.names(part).items()}

        def copy(leaf: Leaf) -> None:
            self.deltas[inside[leaf.name]].copy_(leaf.deltas)
            if also:
                also(inside[leaf.name], leaf)

        for _ in replace(self.view, only=frozenset(inside), progress=None).map(copy, "leaf"):
            pass

    def load(self, part: int, moved: Mapping[str, Tensor]) -> None:
        """The base's weights of a part, moved by what is given by name within it, into the tower."""
        base = self.view.pool.lead
        for name, whole in self.names(part).items():
            parameter = self.forward.parameters[whole].copy_(base[whole])
            base.release(whole)
            if name in moved:
                parameter.add_(moved[name].to(self.device))

    def load_expert(self, part: int, number: int) -> None:
        """An expert's weights of a part that has been read, into the tower."""
        self.load(part, {name: self.deltas[name][number] for name in self.names(part)})

    def layer(self, number: int) -> nn.Module:
        return self.tower.encoder.layers[number]

    def through(self, part: int, hidden: Tensor) -> Float[Tensor, "picture token width"]:
        """Hidden states (or, for the stem, pixels) after a part, float32."""
        with torch.no_grad(), self.forward.precise():
            if part == STEM:
                return self.tower.pre_layrnorm(self.tower.embeddings(hidden)).float()
            found = self.layer(part)(hidden, attention_mask=None)
        return (found if isinstance(found, Tensor) else found[0]).float()

    def inputs(self, task: str, layer: int) -> Batches:
        """Hidden states of a task: before layer 0 what the stem makes of its pictures, else what lies in `hidden`."""
        for place in self.places(task):
            if layer:
                yield place, self.hidden[task][place].to(self.device)
            else:
                yield place, self.through(STEM, self.sets[task].pixels(self.rows[task][place]))

    def places(self, task: str) -> Iterator[slice]:
        for start in range(0, len(self.rows[task]), self.batch):
            yield slice(start, start + self.batch)


def floats(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tuple(shape), torch.float32) for name, shape in shapes.items()}
