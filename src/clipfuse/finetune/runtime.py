"""accelerate's part: devices, precision, gradients of several processes, and trackers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clipfuse.errors import ConfigError, unknown

if TYPE_CHECKING:
    from accelerate import Accelerator

MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")


def make_accelerator(
    device: torch.device, precision: str, report_to: Sequence[str] = (), logs: Path | None = None
) -> "Accelerator":
    """An `Accelerator` on a device, or on the one of this process where `torchrun` started several.

    Raises:
        ConfigError: as `check_precision`.
    """
    check_precision(device, precision)
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import GradientAccumulationPlugin

    several = PartialState._shared_state.get("num_processes", 1) > 1
    AcceleratorState._reset_state(reset_partial_state=not several)  # an earlier training's device and precision
    if device.type == "cuda" and device.index is not None and not several:
        torch.cuda.set_device(device)
    return Accelerator(
        mixed_precision=MIXED[precision],
        cpu=device.type == "cpu",
        log_with=list(report_to) or None,
        project_dir=logs,
        # batches are accumulated here; without this a variable of the environment would scale the gradients
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # a process without images of its own in a validation makes no forward pass, and would miss the broadcast
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def check_precision(device: torch.device, precision: str) -> None:
    """Raises ConfigError for a precision that the device does not have."""
    if precision == "float16" and device.type == "cpu":
        raise ConfigError("precision: float16 needs a GPU; bfloat16 and float32 do not")


def check_trackers(report_to: Sequence[str]) -> None:
    """Raises ConfigError for a tracker that is not known or not installed."""
    if not report_to:
        return
    from accelerate.tracking import get_available_trackers

    there = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in report_to:
        if name not in TRACKERS:
            raise ConfigError("report_to: " + unknown("tracker", name, TRACKERS))
        if name not in there:
            raise ConfigError(f"report_to: {name} is not installed: pip install {name}")


def begin_tracking(accelerator: "Accelerator", name: str, settings: Mapping[str, Any]) -> None:
    """Open the trackers with a run of that name."""
    plain = {
        key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in settings.items()
    }
    named = {"wandb": {"name": name}, "trackio": {"name": name}, "mlflow": {"run_name": name}}
    if accelerator.log_with:
        accelerator.init_trackers("clipfuse", plain, named)


def end_tracking(accelerator: "Accelerator") -> None:
    """Close the trackers; `Accelerator.end_training` would also part the processes, which have more to do."""
    for tracker in accelerator.trackers:
        tracker.finish()
