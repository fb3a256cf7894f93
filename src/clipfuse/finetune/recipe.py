"""What a fine-tuning does: every setting that its result depends on."""

from collections.abc import Mapping, Sequence
from math import ceil, cos, pi
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from clipfuse.config import Config
from clipfuse.data.augment import Augment
from clipfuse.errors import ConfigError


class Recipe(Config):
    """The settings of a fine-tuning; defaults are those of the published experts' recipe."""

    train: Literal["full", "attention", "lora"] = "full"
    """What is trained: the whole vision tower, the weight matrices of its attentions, or a LoRA of
    `target_modules`."""
    linearised: bool = False
    """Train the first-order expansion around the base (NTK); with train=lora that of each adapted layer (L-LoRA)."""
    rank: PositiveInt = 16
    """Of a LoRA."""
    lora_alpha: PositiveFloat = 32.0
    """Of a LoRA: B A counts lora_alpha / rank times."""
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of a LoRA's inputs that is dropped while training."""
    target_modules: Sequence[str] = ("q_proj", "v_proj")
    """Ends of the names of the linear layers that a LoRA adapts."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam, AdamW, or plain stochastic gradient descent."""
    lr: PositiveFloat = 1e-5
    """Learning rate; of a schedule the highest."""
    betas: Sequence[float] = Field((0.9, 0.999), min_length=2, max_length=2)
    """Decays of Adam's two moments."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled in AdamW, added to the gradient elsewhere."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate: fixed, or down to zero by half a cosine."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises first."""
    max_grad_norm: PositiveFloat | None = None
    """Gradients with a larger norm are scaled down to it; null never."""
    steps: PositiveInt | None = None
    """Steps of the optimiser; or say `epochs`."""
    epochs: PositiveFloat | Mapping[str, PositiveFloat] | None = None
    """Passes over the training images, one number or by task."""
    batch_size: PositiveInt = 32
    """Images a step of each task, on all devices together."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""
    augment: Augment = Augment()
    """What is done to training images; nothing by default."""
    hold_out: bool = False
    """Where a task has no val split, train without the tenth of train that stands in for it, and validate on that."""
    limit: PositiveInt | None = None
    """Images that are trained on, a seeded choice; null is all."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of forward and backward passes (autocast); weights and optimiser are float32."""
    micro_batch_size: PositiveInt | None = None
    """Most images in a forward pass on a device; gradients of a batch are accumulated. Null is all at once."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: a third more work for a fraction of the memory."""
    seed: int = Field(0, ge=0)
    """For the order of images, augmentation, LoRA's initial values, and held-out images."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights that are written. Halves lose 2 % (float16) or 15 % (bfloat16) of a typical task vector."""

    @model_validator(mode="after")
    def has_one_length(self) -> "Recipe":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("takes either steps or epochs, as in steps=4000")
        return self

    def steps_of(self, images: Mapping[str, int]) -> int:
        """Steps for tasks with so many training images. Raises ConfigError for a task without epochs."""
        if self.steps is not None:
            return self.steps
        found = []
        for task, count in images.items():
            epochs = self.epochs if not isinstance(self.epochs, Mapping) else self.epochs.get(task)
            if epochs is None:
                raise ConfigError(f"epochs: the recipe has none for {task}; say epochs=10 or steps=4000")
            found.append(ceil(epochs * count / self.batch_size))
        return max(found)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0.

        Linear over `warmup_steps`, then lr, or lr · (1 + cos π(step − warmup)/(steps − warmup)) / 2.
        """
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        return self.lr * (1 + cos(pi * (step - self.warmup_steps) / (steps - self.warmup_steps))) / 2

    @property
    def drops(self) -> bool:
        """Whether there is dropout, whose masks depend on how a batch is divided."""
        return self.train == "lora" and self.lora_dropout > 0

    @property
    def kind(self) -> str:
        """What comes out: full, linearised, lora or linearised-lora."""
        if self.train == "lora":
            return "linearised-lora" if self.linearised else "lora"
        return "linearised" if self.linearised else "full"
