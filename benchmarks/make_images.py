"""A task of made-up photographs with DTD's words, and a tokenizer that reads prompts in about as many tokens as CLIP's.

Clouds of noise as JPEG, 500 × 375 pixels, as large as photographs of these tasks are: decoding and resizing them costs
what it costs on real ones. The tokenizer has a token for each word of the twenty tasks' prompts; CLIP's own, which
splits a rare word, needs a few more.
"""

import io
import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from clipfuse.tasks import Task, catalog, read_task

WORDS = "dtd"
SIZE = (500, 375)


def tall20() -> list[Task]:
    """The twenty tasks."""
    return [read_task(path) for path in catalog().values()]


def photograph(random: np.random.Generator) -> bytes:
    """A JPEG of coloured clouds with some grain."""
    clouds = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        SIZE, Image.Resampling.BICUBIC
    )
    grain = random.normal(0, 8, (SIZE[1], SIZE[0], 3))
    file = io.BytesIO()
    Image.fromarray((np.asarray(clouds) + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def make_task(folder: Path, images: int) -> Path:
    """Image folder and task file, unless they are there; path of the task file."""
    task, random = read_task(catalog()[WORDS]), np.random.default_rng(0)
    for number in range(images):
        path = folder / "pictures/test" / task.classes[number % len(task.classes)] / f"{number:05d}.jpg"
        raw = photograph(random)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
    told = {"name": WORDS, "folder": "pictures", "splits": {"test": "test"}}
    told |= {"classes": list(task.classes), "templates": list(task.templates)}
    (folder / "dtd.yaml").write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    return folder / "dtd.yaml"


def write_tokenizer(folder: Path) -> None:
    """Put a tokenizer of whole words into a base's folder, in the place of the one that is there."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    splitter = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    prompts = {prompt.lower() for task in tall20() for row in task.prompts() for prompt in row}
    words = sorted({word for prompt in prompts for word, _ in splitter.pre_tokenize_str(prompt)})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    names = ["<|unknown|>", *words, "<|startoftext|>", "<|endoftext|>"]
    text |= {"vocab_size": 49408, "bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1}
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token=names[0]))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), splitter
    ends = [(name, names.index(name)) for name in names[-2:]]
    made.post_processor = processors.TemplateProcessing(single=f"{names[-2]} $A {names[-1]}", special_tokens=ends)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    made.save(str(folder / "tokenizer.json"))
    kind = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": names[-1],
        "eos_token": names[-1],
        "bos_token": names[-2],
    }
    kind |= {"model_input_names": ["input_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
