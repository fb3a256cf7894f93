"""`sweep`: many values of λ, or of a setting that a method is affine in, for one merge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.errors import ConfigError
from clipfuse.fusion.chain import Chain
from clipfuse.fusion.engine import Parts, prepare, run_scaled, run_unscaled
from clipfuse.fusion.lent import Lender
from clipfuse.fusion.merge import Models, RuleTree, as_dtype, chain_of, finished, look_at, open_pool
from clipfuse.fusion.merged import Merged
from clipfuse.fusion.prepared import Prepared
from clipfuse.fusion.registry import Uses
from clipfuse.fusion.sinks import Sink, TensorSink
from clipfuse.pool.view import Progress


@dataclass(frozen=True, repr=False)  # thousands of numbers otherwise
class Sweep:
    """A merge up to λ (or another setting): a value then costs θ0 + λΔ, and has the bits of a merge with that value."""

    prepared: Prepared
    specs: Mapping[str, TensorSpec]
    """Shape and dtype of the results."""
    parts: Parts
    """Δ before λ and finishes, float32, by name; two of them for an affine setting."""
    measured: Mapping[str, int]
    """What edits and rules counted."""

    @property
    def values(self) -> tuple[float, ...]:
        """The values to choose from."""
        return self.prepared.chain.values

    def write(self, value: float, sink: Sink) -> None:
        """Write the merge with one value, rounded to the results' dtype."""
        chosen = replace(self.prepared, chain=self.prepared.chain.with_value(value))
        run_scaled(chosen, self.parts, sink, self.specs)

    def merged(
        self,
        value: float,
        out: str | Path | None = None,
        chosen_on: tuple[Uses, ...] = (),
        looked: tuple[Mapping[str, Any], ...] = (),
    ) -> Merged:
        """The merge with one value (any), in memory or in a new folder.

        Data that its choice has seen is `chosen_on`, and `looked` rows of the ledger.
        """

        def fill(sink: Sink) -> Mapping[str, int]:
            self.write(value, sink)
            return self.measured

        chain, lent = self.prepared.chain.with_value(value, chosen_on, looked), self.prepared.lent_after
        chosen = replace(self.prepared, chain=chain, files=dict(self.prepared.files), lent_after=lent and lent.anew())
        return finished(chosen, self.specs, out, False, fill)


def sweep(
    models: Models,
    method: RuleTree | Chain,
    *,
    edits: Sequence[RuleTree] = (),
    finishes: Sequence[RuleTree] = (),
    after: RuleTree | None = None,
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    device: str = "cpu",
    data: Lender | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Sweep:
    """Merge once for all values of `scaling_factor` (or of the setting that a method is affine in), a list.

    Takes what `merge` takes, and raises as it does; `Sweep.merged` then gives the merge with one value.
    """
    chain = chain_of(method, settings, edits, finishes, seed, after)
    if not chain.values:
        raise ConfigError(f"method.{chain.swept}: a sweep takes a list of values")
    prepared = prepare(chain, look_at(open_pool(models), threads, memory, device, progress), lender=data)
    specs, count = prepared.result_specs(torch.float32), 1 if chain.swept == "scaling_factor" else 2
    parts = tuple(TensorSink.empty(specs).tensors for _ in range(count))
    measured = run_unscaled(prepared, parts)
    return Sweep(prepared, prepared.result_specs(as_dtype(dtype)), parts, measured)
