"""A small byte-level vocabulary of CLIP's kind, learned from the captions."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

WORD_END = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def learn_vocabulary(sentences: Iterable[str], size: int, longest: int, folder: Path) -> CLIPTokenizer:
    """Learn merges from the sentences, save the tokenizer in `folder`, and return it as loaded from there.

    Every byte is in the vocabulary, alone and at a word's end, so that any text can be written with it.

    Args:
        sentences: what to learn from.
        size: most entries before the bytes at word ends and the two specials are added.
        longest: the text encoder's positions; without it the tokenizer would never truncate.
        folder: where the files go.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END, continuing_subword_prefix=""))
    learner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, end_of_word_suffix=WORD_END, initial_alphabet=letters, show_progress=False
    )
    learner.train_from_iterator(sentences, trainer)
    learner.save(str(folder / "learned.json"))
    return as_clip(folder / "learned.json", letters, longest, folder)


def as_clip(learned: Path, letters: list[str], longest: int, folder: Path) -> CLIPTokenizer:
    """Rewrite a learned BPE as a CLIP tokenizer: bytes first, then merges, then the two specials."""
    model = json.loads(learned.read_text(encoding="utf-8"))["model"]
    learned.unlink()
    merges: list = [tuple(pair) for pair in model["merges"]]
    words = letters + [letter + WORD_END for letter in letters] + [left + right for left, right in merges]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*words, START, END]))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=longest)
    tokenizer.save_pretrained(folder)
    # The two files of the classic form: the slow tokenizer of transformers 4 reads nothing else.
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)
