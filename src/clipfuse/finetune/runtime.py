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
        ConfigError: a precision that the device does not have, or a tracker that is not known or not installed.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    check_trackers(report_to)
    if precision == "float16" and device.type == "cpu":
        raise ConfigError("precision: float16 needs a GPU; bfloat16 and float32 do not")
    several = PartialState._shared_state.get("num_processes", 1) > 1
    AcceleratorState._reset_state(reset_partial_state=not several)  # an earlier training's device and precision
    if device.type == "cuda" and device.index is not None and not several:
        torch.cuda.set_device(device)
    return Accelerator(
        mixed_precision=MIXED[precision], cpu=device.type == "cpu", log_with=list(report_to) or None, project_dir=logs
    )


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
        accelerator.init_trackers(name if accelerator.log_with == ["tensorboard"] else "clipfuse", plain, named)


def end_tracking(accelerator: "Accelerator") -> None:
    """Close the trackers; `Accelerator.end_training` would also part the processes, which have more to do."""
    for tracker in accelerator.trackers:
        tracker.finish()
