"""Makes everything that the tiny suite ships: atlases, tokenizer, base and experts. Needs the development tools.

    python scripts/make_tiny.py art        # fetch the sources and pack sprites, typefaces and scans
    python scripts/make_tiny.py base       # pre-train for one more leg; --fresh begins anew
    python scripts/make_tiny.py experts    # fine-tune the base once per task
    python scripts/make_tiny.py sheets     # draw the documentation's contact sheets

Everything is seeded: the same machine, torch and Pillow give the same files. A leg of the pre-training begins with the
shipped base and takes about twenty minutes on two idle cores. When it is stopped, the same command goes on; when it is
done, the base is replaced if its mean zero-shot accuracy on val has grown. What the legs and the fine-tunings print is
kept in `scripts/tiny/logs`.
"""

import argparse
import hashlib
import json
import platform
import shutil
import tempfile
import time
from pathlib import Path
from statistics import mean
from types import ModuleType

import numpy as np
import PIL
import torch
import transformers
from tiny.atlas import pack_glyphs, pack_sprites
from tiny.model import POSITIONS, correct, small_clip, split_tensors, zero_shot_head
from tiny.packing import pack_digits
from tiny.sheets import write_sheets
from tiny.shipping import check_base, check_expert, write_base
from tiny.sources import SOURCES, fetch
from tiny.training import Leg, pretrain
from tiny.vocabulary import learn_vocabulary
from tiny.web import pretraining
from transformers import CLIPModel, CLIPTokenizer

from clipfuse.cli.finetune import line_of
from clipfuse.cli.live import live
from clipfuse.config.presets import load_preset
from clipfuse.run.finetune import Expert, finetune
from clipfuse.tiny import WEIGHTS, digits, glyphs, sprites
from clipfuse.tiny.suite import SUITE
from clipfuse.tiny.task import TinyTask

THREADS = 2
SCRATCH = SOURCES.parent
"""Where pictures and half-done work lie; git does not see it."""

LOGS = Path(__file__).parent / "tiny" / "logs"
HISTORY = LOGS / "legs.json"
"""Every leg so far, with the zero-shot accuracy on val after it."""

VOCABULARY = 2500
PICTURES, PASSES, BATCH, PEAK = 300_000, 4, 256, 1.5e-3


class Log:
    """Prints lines, with the seconds since the start, and adds them to a file."""

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.start, self.path = time.perf_counter(), path
        if fresh:
            path.unlink(missing_ok=True)
        libraries: tuple[ModuleType, ...] = (np, PIL, torch, transformers)
        versions = ", ".join(f"{library.__name__} {library.__version__}" for library in libraries)
        self(f"python {platform.python_version()}, {versions}; {platform.machine()}, {THREADS} threads")

    def __call__(self, line: str) -> None:
        stamped = f"{time.perf_counter() - self.start:6.0f}s  {line}"
        print(stamped, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(stamped + "\n")


def make_art() -> None:
    """Fetch the sources and pack what the suite ships of them."""
    fetch()
    sprites.ATLAS.parent.mkdir(exist_ok=True)
    pack_sprites(sprites.ATLAS)
    pack_glyphs(glyphs.ATLAS)
    pack_digits(digits.SCANS)


def make_base(fresh: bool, device: str) -> None:
    """One more leg of the pre-training, from the shipped base or from nothing."""
    fetch()
    SCRATCH.mkdir(exist_ok=True)
    done = [] if fresh else json.loads(HISTORY.read_text(encoding="utf-8"))
    number = len(done)
    state = SCRATCH / f"leg-{number}.pt"
    say = Log(SCRATCH / f"leg-{number}.txt", fresh=not state.exists())
    pictures, captions = web(number, say)
    if fresh:
        vocabulary = SCRATCH / "vocabulary"
        shutil.rmtree(vocabulary, ignore_errors=True)
        vocabulary.mkdir()
        prompts = [template.format(c=name) for task in SUITE for template in task.templates for name in task.classes]
        tokenizer = learn_vocabulary([*captions, *prompts], VOCABULARY, POSITIONS, vocabulary)
        torch.manual_seed(0)
        clip = small_clip(tokenizer)
    else:
        clip, tokenizer = load(WEIGHTS / "base")
    leg = Leg(number, torch.from_numpy(pictures), captions, PASSES, BATCH, PEAK)
    torch.nn.Module.to(clip, device)
    pretrain(clip, tokenizer, leg, state, say)
    clip.cpu()
    with tempfile.TemporaryDirectory(dir=WEIGHTS, prefix=".") as scratch:
        draft = Path(scratch) / "base"
        write_base(clip, SCRATCH / "vocabulary" if fresh else WEIGHTS / "base", draft)
        check_base(draft)
        clip, tokenizer = load(draft)
        accuracies = {task.name: accuracy(clip, tokenizer, task, "val") for task in SUITE}
        better = all(mean(past["val"].values()) < mean(accuracies.values()) for past in done)
        if better:
            replace_folder(draft, WEIGHTS / "base")
    pairs = leg.steps * BATCH
    done.append({"leg": number, "pictures": len(captions), "pairs": pairs, "val": accuracies, "shipped": better})
    HISTORY.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    say("the base is replaced" if better else "the base stays: on val it is better than this")
    say("zero-shot accuracy on val: " + "  ".join(f"{k} {100 * v:.1f}" for k, v in accuracies.items()))
    shutil.copy(say.path, LOGS)
    for used in SCRATCH.glob(f"leg-{number}.*"):
        used.unlink()


def web(number: int, say: Log) -> tuple[np.ndarray, list[str]]:
    """The pictures and captions of a leg, drawn when they are first asked for."""
    pictures, captions = SCRATCH / f"leg-{number}.npy", SCRATCH / f"leg-{number}.json"
    if not captions.exists():
        drawn, texts = pretraining(PICTURES, number, THREADS)
        np.save(pictures, drawn)
        draft = captions.with_suffix(".part")
        draft.write_text(json.dumps(texts), encoding="utf-8")
        draft.replace(captions)
        say(f"drew {len(texts)} captioned pictures")
    return np.load(pictures), json.loads(captions.read_text(encoding="utf-8"))


def replace_folder(draft: Path, target: Path) -> None:
    """Put a folder in the place of another one, which goes away last."""
    old = draft.with_name(f"{target.name}.old")
    if target.exists():
        target.rename(old)
    draft.rename(target)


def digest(folder: Path) -> str:
    """SHA-256 of a model's weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def load(folder: Path) -> tuple[CLIPModel, CLIPTokenizer]:
    """A base and its tokenizer."""
    return CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)


def accuracy(clip: CLIPModel, tokenizer: CLIPTokenizer, task: TinyTask, split: str) -> float:
    """Share of a split that the model as it is classifies right."""
    pictures, labels = split_tensors(task, split)
    return correct(clip, zero_shot_head(clip, tokenizer, task), pictures, labels) / len(labels)


def make_experts(seed: int, into: Path) -> None:
    """Fine-tune the shipped base once per task, as `clipfuse finetune taskpool=tiny_TA8 recipe=tiny` does."""
    say = Log(LOGS / f"experts-{seed}.txt", fresh=True)
    say(f"seed {seed}, from the base {digest(WEIGHTS / 'base')}")
    pool = load_preset("taskpool", "tiny_TA8")
    tree = {"taskpool": pool, "recipe": "tiny", "seed": seed, "out": str(into), "overwrite": True}

    def done(expert: Expert) -> None:
        say(line_of(expert).replace(f" → {expert.folder}", ""))
        check_expert(expert.folder)

    finetune(tree, live, done)
    if into == WEIGHTS:  # the package has a preset instead
        (into / "modelpool.yaml").unlink()


def main() -> None:
    """Do one of the steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("art")
    steps.add_parser("sheets")
    base = steps.add_parser("base")
    base.add_argument("--fresh", action="store_true", help="begin with new weights and a new tokenizer")
    base.add_argument("--device", default="cpu", help="where to train, e.g. cuda")
    experts = steps.add_parser("experts")
    experts.add_argument("--seed", type=int, default=0)
    experts.add_argument("--into", type=Path, default=WEIGHTS, help="folder that gets one folder per task")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    transformers.utils.logging.disable_progress_bar()
    if options.step == "art":
        make_art()
    elif options.step == "sheets":
        write_sheets(Path(__file__).parents[1] / "docs" / "tiny")
    elif options.step == "base":
        make_base(options.fresh, options.device)
    else:
        options.into.mkdir(parents=True, exist_ok=True)
        make_experts(options.seed, options.into)


if __name__ == "__main__":
    main()
