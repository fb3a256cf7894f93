"""Full CLIPs with random weights, in a Hugging Face folder."""

import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from clipfuse.checkpoints.locate import local_path

TINY = local_path("pkg://clipfuse/tiny/weights/base")
WORDS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
VISION = {
    "small": {
        "patch_size": 8,
        "image_size": 32,
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "smaller": {
        "patch_size": 4,
        "image_size": 8,
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "ViT-B/32": {"patch_size": 32},
    "ViT-B/16": {"patch_size": 16},
    "ViT-L/14": {
        "patch_size": 14,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
}
TEXT = {
    "small": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2},
    "smaller": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 1},
    "ViT-L/14": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
}
DIMENSIONS = {"small": 8, "smaller": 8, "ViT-L/14": 768}


def write_random_clip(folder: Path, name: str, seed: int = 0) -> None:
    """A CLIP of a known geometry with random weights; words by the tiny suite's tokenizer, OpenAI's preprocessing."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    dim = DIMENSIONS.get(name, 512)
    config = CLIPConfig(
        text_config={**TEXT.get(name, {}), **ids, "projection_dim": dim},
        vision_config={**VISION[name], "projection_dim": dim},
        projection_dim=dim,
    )
    torch.manual_seed(seed)
    CLIPModel(config).save_pretrained(folder)
    side = VISION[name].get("image_size", 224)
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder
    )
    for file in WORDS:
        if (TINY / file).is_file():
            shutil.copy(TINY / file, folder)
