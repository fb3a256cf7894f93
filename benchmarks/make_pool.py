"""A random pool of real geometry in the hub's layout: a base, experts around it, and the YAML of the pool.

    python benchmarks/make_pool.py                                   # ViT-B/32, eight experts, 3.1 GB in .bench/b32
    python benchmarks/make_pool.py --arch l14 --dtype float16 --out .bench/l14-half

The base is N(0, 0.02), an expert is the base + N(0, 3e-4): a task vector of about 1.5 % of the norm. The weights mean
nothing; their number, shapes and magnitudes are those of the real models. What is there already is kept.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

EXPERTS = ("sun397", "stanford_cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
"""Names of the preset clip-vit-base-patch32_TA8, in its order."""
BASE_SPREAD, EXPERT_SPREAD = 0.02, 3e-4
"""Standard deviations of the base's weights and of the task vectors."""
PATCH = {"b32": 32, "b16": 16, "l14": 14}
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Shapes = Mapping[str, torch.Size]
Arch = Literal["b32", "b16", "l14"]
Dtype = Literal["float32", "float16", "bfloat16"]


def vision_config(arch: Arch) -> dict[str, Any]:
    """Settings of a CLIPVisionConfig with OpenAI's activation."""
    sizes = LARGE if arch == "l14" else BASE
    projection = 768 if arch == "l14" else 512
    return sizes | {"patch_size": PATCH[arch], "projection_dim": projection, "hidden_act": "quick_gelu"}


def text_config(arch: Arch, tokens: int) -> dict[str, Any]:
    """Settings of a CLIPTextConfig of the real size, for `tokens` tokens of which the last two are special."""
    width, heads = (768, 12) if arch == "l14" else (512, 8)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
    special = {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1, "pad_token_id": tokens - 1}
    return sizes | special | {"num_hidden_layers": 12, "projection_dim": width, "hidden_act": "quick_gelu"}


def vision_folder(folder: Path, arch: Arch) -> Shapes:
    """Write the config.json of a CLIPVisionModel; names and shapes of its tensors as on the hub."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**vision_config(arch), architectures=["CLIPVisionModel"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = CLIPVisionModel(config).state_dict()
    return {f"vision_model.{name.removeprefix('vision_model.')}": value.shape for name, value in state.items()}


def clip_folder(folder: Path, arch: Arch) -> Shapes:
    """Write configs, image processor and a tokenizer of single bytes for a full CLIPModel; its names and shapes."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer({token: number for number, token in enumerate(tokens)}, []).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    vision, text = vision_config(arch), text_config(arch, len(tokens))
    joint = {"projection_dim": vision["projection_dim"], "architectures": ["CLIPModel"]}
    config = CLIPConfig(vision_config=vision, text_config=text, **joint)
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = CLIPModel(config).state_dict()
    return {name: value.shape for name, value in state.items()}


def normal(name: str, shape: torch.Size, spread: float, seed: int) -> Tensor:
    """N(0, spread) that depends on seed and name alone, float32 (*shape)."""
    generator = torch.Generator().manual_seed(seed << 32 | zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator).mul_(spread)


def random_base(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    base = {name: normal(name, shape, BASE_SPREAD, seed) for name, shape in shapes.items()}
    if "logit_scale" in base:
        base["logit_scale"].fill_(4.6052)
    return base


def save(weights: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Write model.safetensors whole or not at all."""
    part = folder / "model.safetensors.part"
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}, part, {"format": "pt"})
    part.replace(folder / "model.safetensors")


def make_pool(out: Path, arch: Arch, experts: int, seed: int, dtype: Dtype, with_clip: bool) -> Path:
    """Make what is not there yet; path of the pool's YAML."""
    recipe = {"arch": arch, "seed": seed, "dtype": dtype, "with_clip": with_clip}
    told = out / "recipe.json"
    if told.exists() and json.loads(told.read_text(encoding="utf-8")) != recipe:
        raise typer.BadParameter(f"{out} holds another pool ({told.read_text(encoding='utf-8')}); choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    told.write_text(json.dumps(recipe), encoding="utf-8")
    names = [*EXPERTS, *(f"expert_{number}" for number in range(len(EXPERTS), experts))][:experts]

    base_folder = out / "base"
    if not (base_folder / "model.safetensors").exists():
        shapes = (clip_folder if with_clip else vision_folder)(base_folder, arch)
        save(random_base(shapes, seed), base_folder, DTYPES[dtype])
    base = load_file(base_folder / "model.safetensors")
    vision = {name: tensor for name, tensor in base.items() if name.startswith("vision_model.")}
    for number, name in enumerate(names, 1):
        if not (out / name / "model.safetensors").exists():
            vision_folder(out / name, arch)
            noise = (
                (key, value, normal(f"{number} {key}", value.shape, EXPERT_SPREAD, seed))
                for key, value in vision.items()
            )
            save({key: value.float() + delta for key, value, delta in noise}, out / name, DTYPES[dtype])

    models = [{"name": "_pretrained_", "path": str(base_folder.absolute())}]
    models += [{"name": name, "path": str((out / name).absolute())} for name in names]
    tree = {"type": "huggingface_clip_vision", "models": models}
    (out / "pool.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    count = sum(tensor.numel() for tensor in vision.values())
    print(f"{out / 'pool.yaml'}: base and {len(names)} experts of {count:,} parameters, {len(vision)} tensors, {dtype}")
    return out / "pool.yaml"


def main(
    out: Annotated[Path | None, typer.Option(help="Folder of the pool; .bench/ARCH if not given.")] = None,
    arch: Annotated[Arch, typer.Option(help="ViT-B/32, ViT-B/16 or ViT-L/14.")] = "b32",
    experts: Annotated[int, typer.Option(min=1)] = 8,
    seed: int = 0,
    dtype: Dtype = "float32",
    with_clip: Annotated[bool, typer.Option("--with-clip", help="Make the base a full CLIP, for evaluation.")] = False,
) -> None:
    """Make a random pool of real geometry."""
    make_pool(out or Path(".bench") / arch, arch, experts, seed, dtype, with_clip)


if __name__ == "__main__":
    typer.run(main)
