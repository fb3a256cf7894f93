"""Makes everything that the tiny suite ships: the packed digits, the tokenizer, the base, and one expert per task.

    python scripts/make_tiny.py

Takes a few minutes on two cores; needs clipfuse installed (or `src` in PYTHONPATH), scikit-learn, and no network.
Everything is seeded: the same machine, torch and Pillow give the same files. What it prints is kept in
`src/clipfuse/tiny/weights/log.txt`.
"""

import platform
import shutil
import tempfile
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL
import torch
import transformers
from tiny.drawings import pretraining
from tiny.figures import print_figures
from tiny.model import POSITIONS, correct, set_vision_weights, small_clip, split_tensors, vision_weights, zero_shot_head
from tiny.packing import pack_digits
from tiny.shipping import check_folders, write_base, write_expert
from tiny.training import finetune, pretrain
from tiny.vocabulary import learn_vocabulary
from transformers import CLIPModel, CLIPTokenizer

from clipfuse.tiny import WEIGHTS, digits, materialise
from clipfuse.tiny.suite import SUITE

SEED = 0
THREADS = 2
VOCABULARY = 1200
DRAWINGS, STEPS = 70_000, 1_700
NAMED_DIGIT, NAMED_SIGN = 0.3, 0.2
"""Share of the pre-training's captions that name a digit, or a sign of the right kind."""
EPOCHS = {"tiny-digits": 60, "tiny-signs": 25}
RATE = 5e-5


class Log:
    """Prints lines, with the seconds since the start, and keeps them."""

    def __init__(self) -> None:
        self.start, self.lines = time.perf_counter(), []

    def __call__(self, line: str) -> None:
        stamped = f"{time.perf_counter() - self.start:6.1f}s  {line}"
        print(stamped, flush=True)
        self.lines.append(stamped)


def make_base(say: Log, folder: Path, scratch: Path) -> None:
    """Draw, learn the vocabulary, pre-train, and write the base."""
    pictures, captions = pretraining(DRAWINGS, SEED, NAMED_DIGIT, NAMED_SIGN)
    say(f"drew {len(pictures)} captioned pictures")
    prompts = [template.format(c=name) for task in SUITE for template in task.templates for name in task.classes]
    tokenizer = learn_vocabulary([*captions, *prompts], VOCABULARY, POSITIONS, scratch)
    say(f"vocabulary of {len(tokenizer)} entries")
    clip = small_clip(tokenizer)
    pretrain(clip, tokenizer, torch.from_numpy(pictures), captions, STEPS, say)
    write_base(clip, scratch, folder)


def make_experts(say: Log, weights: Path) -> None:
    """Fine-tune the base, as its file has it, once per task, and write the experts."""
    clip = CLIPModel.from_pretrained(weights / "base")
    tokenizer = CLIPTokenizer.from_pretrained(weights / "base")
    start = vision_weights(clip)
    for task in SUITE:
        torch.manual_seed(SEED)
        set_vision_weights(clip, start)
        head = zero_shot_head(clip, tokenizer, task)
        loss = finetune(clip, head, *split_tensors(task, "train"), epochs=EPOCHS[task.name], rate=RATE)
        pictures, labels = split_tensors(task, "val")
        right = correct(clip, head, pictures, labels)
        say(f"{task.name}: {EPOCHS[task.name]} epochs, train loss {loss:.3f}, {right} of {len(labels)} right on val")
        write_expert(clip.vision_model.config, vision_weights(clip), weights / task.name)


def main() -> None:
    """Make everything, check it, and put it in its place."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    transformers.utils.logging.disable_progress_bar()
    say = Log()
    libraries: tuple[ModuleType, ...] = (np, PIL, torch, transformers)
    versions = ", ".join(f"{library.__name__} {library.__version__}" for library in libraries)
    say(f"python {platform.python_version()}, {versions}; {platform.machine()}, {THREADS} threads, seed {SEED}")
    pack_digits(digits.SCANS)
    with tempfile.TemporaryDirectory() as scratch:
        weights, vocabulary = Path(scratch) / "weights", Path(scratch) / "vocabulary"
        vocabulary.mkdir()
        make_base(say, weights / "base", vocabulary)
        make_experts(say, weights)
        suite = materialise(Path(scratch))
        check_folders(weights, [task.name for task in SUITE], next(suite.rglob("*.png")))
        say("transformers loads every folder, no tensor missing or left over")
        print_figures(weights, SUITE, say)
        size = sum(file.stat().st_size for file in weights.rglob("*") if file.is_file())
        say(f"{size / 1e6:.2f} MB in all")
        (weights / "log.txt").write_text("\n".join(say.lines) + "\n", encoding="utf-8")
        shutil.rmtree(WEIGHTS, ignore_errors=True)
        shutil.copytree(weights, WEIGHTS)


if __name__ == "__main__":
    main()
