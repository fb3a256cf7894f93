"""Pre-training of the whole model on captions; fine-tuning of its vision encoder on one task."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer

from tiny.model import as_pixels, image_features, text_features

Say = Callable[[str], None]


def pretrain(
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    pictures: Tensor,
    captions: list[str],
    steps: int,
    say: Say,
    batch: int = 256,
    peak: float = 1.5e-3,
) -> None:
    """Contrastive training in place, with warm-up and a cosine decay of the learning rate.

    Pictures are (n, 32, 32, 3) uint8. A caption that a batch holds twice counts as one text with two pictures.
    """
    texts = list(dict.fromkeys(captions))
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    number = {text: index for index, text in enumerate(texts)}
    caption = torch.tensor([number[text] for text in captions])
    say(f"pre-training on {len(pictures)} drawings with {len(texts)} different captions, {steps} steps of {batch}")

    matrices = [value for value in clip.parameters() if value.ndim > 1]
    others = [value for value in clip.parameters() if value.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, peak, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    clip.train()
    clip.logit_scale.data.fill_(math.log(14))
    order, total = torch.randperm(len(pictures)), 0.0
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(pictures))
        chosen, order = order[:batch], order[batch:]
        present, which = torch.unique(caption[chosen], return_inverse=True)
        pixels = jittered(as_pixels(pictures[chosen]))
        seen = image_features(clip, pixels)
        read = text_features(clip, tokens.input_ids[present], tokens.attention_mask[present])
        logits = clip.logit_scale.exp() * seen @ read.T  # (pictures, different captions)
        owners = functional.one_hot(which, len(present)).T.float()
        spread = (owners / owners.sum(1, keepdim=True) * functional.log_softmax(logits.T, dim=1)).sum(1).mean()
        loss = (functional.cross_entropy(logits, which) - spread) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        clip.logit_scale.data.clamp_(0, math.log(100))
        total += loss.item()
        if (step + 1) % 100 == 0:
            say(f"  step {step + 1:5d}  loss {total / 100:.3f}  logit scale {clip.logit_scale.exp().item():.1f}")
            total = 0.0
    clip.eval()


def jittered(pixels: Tensor) -> Tensor:
    """The batch (n, 3, 32, 32) moved by up to two pixels, each picture lit a little differently."""
    down, right = (int(v) for v in torch.randint(-2, 3, (2,)))
    return torch.roll(pixels, (down, right), (2, 3)) * (0.85 + 0.3 * torch.rand(len(pixels), 1, 1, 1))


def finetune(
    clip: CLIPModel, head: Tensor, pictures: Tensor, labels: Tensor, epochs: int, rate: float, batch: int = 32
) -> float:
    """Train the vision encoder in place against a frozen zero-shot head (classes, 64); return the last epoch's loss.

    Cross-entropy, Adam at a fixed rate, no weight decay, pictures moved and lit as in pre-training. Text encoder,
    projections and logit scale stay as they are.
    """
    for value in clip.parameters():
        value.requires_grad_(False)
    moving = list(clip.vision_model.parameters())
    for value in moving:
        value.requires_grad_(True)
    optimizer = torch.optim.Adam(moving, rate)
    scale = clip.logit_scale.exp().item()
    clip.train()
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(pictures)).split(batch):
            logits = scale * image_features(clip, jittered(as_pixels(pictures[chosen]))) @ head.T
            loss = functional.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chosen)
    clip.eval()
    return total / len(pictures)
