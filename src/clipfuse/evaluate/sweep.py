"""Evaluating many values of λ with one working copy: base, Δ and the copy, whatever the number of values.

Of linearised models the copy is θ0 and τ, of which τ is set: one model's size more.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from clipfuse.checkpoints.names import PROJECTION, canonical_names
from clipfuse.errors import ModelError
from clipfuse.evaluate.scoring import Candidate
from clipfuse.fusion.merged import NO_GEOMETRY
from clipfuse.fusion.sinks import Sink, TensorSink
from clipfuse.fusion.sweep import Sweep
from clipfuse.models.clip_base import ClipBase
from clipfuse.models.encoder import VisionEncoder, build_encoder
from clipfuse.models.linearised import LinearisedTower
from clipfuse.shapes import Float


class WorkingCopy:
    """A vision encoder whose weights are set to the merge with a value of λ when that is asked for."""

    def __init__(self, sweep: Sweep, base: ClipBase, device: torch.device):
        pool = sweep.prepared.pool
        if pool.geometry is None:
            raise ModelError(NO_GEOMETRY)
        self.sweep = sweep
        self.encoder = build_encoder(pool.lead, pool.geometry, base, whole=True).to(device, torch.float32)
        own = {PROJECTION: self.encoder.projection} if PROJECTION in pool.lead else {}
        self.sink = sink_of(self.encoder, own)
        self.value: float | None = None

    def set(self, value: float) -> None:
        """Make the copy the merge with λ = `value`, rounded to the dtype that it would be written in."""
        if value != self.value:
            self.value = None
            self.sweep.write(value, self.sink)
            self.value = value


def sink_of(encoder: VisionEncoder, own: dict[str, Tensor]) -> Sink:
    """What makes written weights those of an encoder's tower; other parameters are `own`."""
    if isinstance(encoder.vision, LinearisedTower):
        return DifferenceSink(encoder.vision, own)
    stored = encoder.vision.state_dict()
    return TensorSink({name: stored[place] for name, place in canonical_names(stored, "the model").items()} | own)


class DifferenceSink:
    """Takes weights θ and keeps τ = θ − θ0 of a linearised tower."""

    def __init__(self, tower: LinearisedTower, own: dict[str, Tensor]):
        deltas = {name: delta.detach() for name, delta in tower.deltas.items()}
        self.sink, self.origin = TensorSink(deltas | own), tower.origin

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        """Write θ of a parameter's elements from `start` on."""
        if name in self.origin:
            before = self.origin[name].view(-1)[start : start + values.numel()]
            values = values.reshape(-1).to(before) - before
        self.sink.write(name, values, start)


class SweepEncoder:
    """One value of λ, on the shared working copy."""

    needs_task_id = False
    bytes = 0

    def __init__(self, copy: WorkingCopy, value: float):
        self.copy, self.value, self.base = copy, value, copy.encoder.base

    @property
    def widest(self) -> int:
        return self.copy.encoder.widest

    def features(self, pixels: Float[Tensor, "batch 3 height width"], task: str | None) -> Float[Tensor, "batch embed"]:
        self.copy.set(self.value)
        return self.copy.encoder.features(pixels, task)

    def to(self, device: torch.device, dtype: torch.dtype) -> "SweepEncoder":
        """Itself: the working copy is where and what it is, float32."""
        return self

    def identity(self) -> str:
        """Of the merge with this value."""
        self.copy.set(self.value)
        return self.copy.encoder.identity()


def sweep_candidates(sweep: Sweep, base: ClipBase, device: torch.device) -> Mapping[float, Candidate]:
    """One candidate a value of λ; they share a working copy and so are free to be evaluated together."""
    copy = WorkingCopy(sweep, base, device)
    return {
        value: Candidate(
            f"{sweep.prepared.chain.method.rule.name} λ={value!r}", lambda v=value: SweepEncoder(copy, v), 0
        )
        for value in sweep.values
    }
