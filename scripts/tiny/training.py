"""Pre-training of the whole model on captions."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer

from tiny.model import as_pixels, image_features, text_features

Say = Callable[[str], None]


class Leg(NamedTuple):
    """One piece of the pre-training: its own pictures, passed over a few times."""

    number: int
    pictures: Tensor
    """(n, 32, 32, 3) uint8"""
    captions: list[str]
    passes: int
    batch: int
    peak: float
    """Highest learning rate."""

    @property
    def steps(self) -> int:
        """How many batches."""
        return self.passes * (len(self.pictures) // self.batch)

    def order(self, number: int) -> Tensor:
        """The pictures' order in one pass."""
        return torch.randperm(len(self.pictures), generator=seeded(self.number, number, 0))

    def rate(self, step: int) -> float:
        """Learning rate: up over 200 steps, level, and down to zero over the last third, so that a leg ends well."""
        return self.peak * min(1.0, (step + 1) / 200, 3 * (self.steps - step) / self.steps)


def seeded(*key: int) -> torch.Generator:
    """Random numbers that depend on nothing but the key, so that an interrupted run goes on as it would have."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def pretrain(clip: CLIPModel, tokenizer: CLIPTokenizer, leg: Leg, state: Path, say: Say, every: float = 60.0) -> None:
    """Contrastive training in place over one leg; goes on from the file `state`, written `every` so many seconds.

    A caption that a batch holds twice counts as one text with two pictures. The logit scale stays as it is. Everything
    runs where the model is. Raises ValueError if `state` belongs to another leg or other weights.
    """
    device = clip.device
    texts = list(dict.fromkeys(leg.captions))
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    number = {text: index for index, text in enumerate(texts)}
    caption = torch.tensor([number[text] for text in leg.captions])
    say(f"leg {leg.number}: {len(caption)} pictures, {len(texts)} different captions, {leg.steps} steps of {leg.batch}")

    clip.logit_scale.requires_grad_(False)
    matrices = [value for value in clip.parameters() if value.ndim > 1]
    others = [value for value in clip.parameters() if value.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, leg.peak, betas=(0.9, 0.98))
    mark_of_leg = fingerprint(clip, leg)
    first = resume(clip, optimizer, state, mark_of_leg)
    clip.train()
    saved, order, losses = time.monotonic(), torch.tensor([]), []
    for step in range(first, leg.steps):
        number_of_pass, place = divmod(step, leg.steps // leg.passes)
        if place == 0 or step == first:
            order = leg.order(number_of_pass)
        chosen = order[place * leg.batch : (place + 1) * leg.batch]
        present, which = torch.unique(caption[chosen], return_inverse=True)
        length = int(tokens.attention_mask[present].sum(1).max())
        pixels = jittered(as_pixels(leg.pictures[chosen]), seeded(leg.number, step, 1))
        ids, mask = tokens.input_ids[present, :length], tokens.attention_mask[present, :length]
        seen = image_features(clip, pixels.to(device))
        read = text_features(clip, ids.to(device), mask.to(device))
        loss = contrast(clip.logit_scale.exp() * seen @ read.T, which.to(device))
        for group in optimizer.param_groups:
            group["lr"] = leg.rate(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 250 == 0:
            say(f"  step {step + 1:5d} of {leg.steps}  loss {sum(losses) / len(losses):.3f}")
            losses.clear()
        if time.monotonic() - saved >= every:
            keep(clip, optimizer, step + 1, state, mark_of_leg)
            saved = time.monotonic()
    clip.eval()


def contrast(logits: Tensor, which: Tensor) -> Tensor:
    """Mean of both directions' losses; logits (pictures, different captions), `which` is each picture's caption."""
    owners = functional.one_hot(which, logits.shape[1]).T.float()
    spread = (owners / owners.sum(1, keepdim=True) * functional.log_softmax(logits.T, dim=1)).sum(1).mean()
    return (functional.cross_entropy(logits, which) - spread) / 2


def fingerprint(clip: CLIPModel, leg: Leg) -> str:
    """Says which leg this is, and from which weights it began."""
    digest = hashlib.sha256(repr((leg.number, leg.passes, leg.batch, leg.peak, leg.captions)).encode())
    for value in (leg.pictures, *clip.state_dict().values()):
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def keep(clip: CLIPModel, optimizer: torch.optim.Optimizer, step: int, state: Path, mark: str) -> None:
    """Write everything that going on after `step` steps needs."""
    draft = state.with_suffix(".part")
    kept = {"mark": mark, "step": step, "model": clip.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(kept, draft)
    draft.replace(state)


def resume(clip: CLIPModel, optimizer: torch.optim.Optimizer, state: Path, mark: str) -> int:
    """Load what `keep` wrote, in place; return the step to go on with, 0 without a file."""
    if not state.exists():
        return 0
    kept = torch.load(state, weights_only=True)
    if kept["mark"] != mark:
        raise ValueError(f"{state}: is of another leg, or began from other weights; delete it to begin this leg anew")
    clip.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    return int(kept["step"])


def jittered(pixels: Tensor, random: torch.Generator) -> Tensor:
    """The batch (n, 3, 32, 32) moved by up to two pixels, each picture lit a little differently."""
    down, right = (int(v) for v in torch.randint(-2, 3, (2,), generator=random))
    return torch.roll(pixels, (down, right), (2, 3)) * (0.85 + 0.3 * torch.rand(len(pixels), 1, 1, 1, generator=random))
