"""A random pool of real geometry in the hub's layout: a base, experts around it, and the YAML of the pool.

    python benchmarks/make_pool.py                                   # ViT-B/32, eight experts, 3.1 GB in .bench/b32
    python benchmarks/make_pool.py --arch l14 --dtype float16 --out .bench/l14-half
    python benchmarks/make_pool.py --arch l14 --experts 20 --files 8 # twenty names for eight experts' files
    python benchmarks/make_pool.py --layers 2 --width 192 --correlation 0.5 --out .bench/small

The base is N(0, 0.02), an expert is the base + N(0, 3e-4): a task vector of about 1.5 % of the norm. The weights mean
nothing; their number, shapes and magnitudes are those of the real models. What is there already is kept.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

EXPERTS = ("sun397", "stanford_cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
"""Names of the preset clip-vit-base-patch32_TA8, in its order."""
BASE_SPREAD = 0.02
"""Standard deviation of the base's weights."""
PATCH = {"b32": 32, "b16": 16, "l14": 14}
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Shapes = Mapping[str, torch.Size]
Arch = Literal["b32", "b16", "l14"]
Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """What a pool's weights depend on; written beside them."""

    arch: Arch = "b32"
    seed: int = 0
    dtype: Dtype = "float32"
    with_clip: bool = False
    """Whether the base is a full CLIP, for evaluation."""
    layers: int | None = None
    """Encoder layers, if not the real number."""
    width: int | None = None
    """Hidden size, a multiple of 64, if not the real one; the MLP is four times as wide."""
    spread: float = 3e-4
    """Standard deviation of the task vectors' entries."""
    correlation: float = 0.0
    """Mean cosine of two task vectors, in [0, 1)."""

    def vision_config(self) -> dict[str, Any]:
        """Settings of a CLIPVisionConfig with OpenAI's activation."""
        sizes = dict(LARGE if self.arch == "l14" else BASE)
        if self.width:
            sizes |= {"hidden_size": self.width, "intermediate_size": 4 * self.width}
            sizes |= {"num_attention_heads": self.width // 64}
        if self.layers:
            sizes["num_hidden_layers"] = self.layers
        projection = 768 if self.arch == "l14" else 512
        return sizes | {"patch_size": PATCH[self.arch], "projection_dim": projection, "hidden_act": "quick_gelu"}


def text_config(arch: Arch, tokens: int) -> dict[str, Any]:
    """Settings of a CLIPTextConfig of the real size, for `tokens` tokens of which the last two are special."""
    width, heads = (768, 12) if arch == "l14" else (512, 8)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
    special = {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1, "pad_token_id": tokens - 1}
    return sizes | special | {"num_hidden_layers": 12, "projection_dim": width, "hidden_act": "quick_gelu"}


def vision_folder(folder: Path, recipe: Recipe) -> Shapes:
    """Write the config.json of a CLIPVisionModel; names and shapes of its tensors as on the hub."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**recipe.vision_config(), architectures=["CLIPVisionModel"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = CLIPVisionModel(config).state_dict()
    return {f"vision_model.{name.removeprefix('vision_model.')}": value.shape for name, value in state.items()}


def clip_folder(folder: Path, recipe: Recipe) -> Shapes:
    """Write configs, image processor and a tokenizer of single bytes for a full CLIPModel; its names and shapes."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer({token: number for number, token in enumerate(tokens)}, []).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    vision, text = recipe.vision_config(), text_config(recipe.arch, len(tokens))
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


def task_vector(name: str, shape: torch.Size, number: int, recipe: Recipe) -> Tensor:
    """N(0, spread) of which the share √correlation is the same for all experts, float32 (*shape)."""
    own = normal(f"{number} {name}", shape, recipe.spread * (1 - recipe.correlation) ** 0.5, recipe.seed)
    if recipe.correlation:
        own += normal(f"common {name}", shape, recipe.spread * recipe.correlation**0.5, recipe.seed)
    return own


def make_pool(out: Path, recipe: Recipe = Recipe(), experts: int = 8, files: int | None = None) -> Path:
    """Make what is not there yet; path of the pool's YAML. Experts beyond `files` are further names for the first."""
    told = out / "recipe.json"
    out.mkdir(parents=True, exist_ok=True)
    if not told.exists():
        told.write_text(json.dumps(asdict(recipe)), encoding="utf-8")
    if (found := Recipe(**json.loads(told.read_text(encoding="utf-8")))) != recipe:
        raise typer.BadParameter(f"{out} holds another pool ({found}); choose another --out")
    names = [*EXPERTS, *(f"expert_{number}" for number in range(len(EXPERTS), experts))][:experts]
    folders = names[: files or experts]

    base_folder, dtype = out / "base", DTYPES[recipe.dtype]
    if not (base_folder / "model.safetensors").exists():
        shapes = (clip_folder if recipe.with_clip else vision_folder)(base_folder, recipe)
        save(random_base(shapes, recipe.seed), base_folder, dtype)
    base = load_file(base_folder / "model.safetensors")
    vision = {name: tensor for name, tensor in base.items() if name.startswith("vision_model.")}
    for number, name in enumerate(folders, 1):
        if not (out / name / "model.safetensors").exists():
            vision_folder(out / name, recipe)
            deltas = ((key, value, task_vector(key, value.shape, number, recipe)) for key, value in vision.items())
            save({key: value.float() + delta for key, value, delta in deltas}, out / name, dtype)

    models = [{"name": "_pretrained_", "path": str(base_folder.absolute())}]
    for number, name in enumerate(names):
        models.append({"name": name, "path": str((out / folders[number % len(folders)]).absolute())})
    tree = {"type": "huggingface_clip_vision", "models": models}
    text, pool = yaml.safe_dump(tree, sort_keys=False), out / "pool.yaml"
    if pool.exists() and pool.read_text(encoding="utf-8") != text:  # of another number of experts
        pool = out / f"pool-{len(names)}.yaml"
    pool.write_text(text, encoding="utf-8")
    count = sum(tensor.numel() for tensor in vision.values())
    print(f"{pool}: base and {len(names)} experts of {count:,} parameters, {len(vision)} tensors, {recipe.dtype}")
    return pool


def main(
    out: Annotated[Path | None, typer.Option(help="Folder of the pool; .bench/ARCH if not given.")] = None,
    arch: Annotated[Arch, typer.Option(help="ViT-B/32, ViT-B/16 or ViT-L/14.")] = "b32",
    experts: Annotated[int, typer.Option(min=1)] = 8,
    files: Annotated[int | None, typer.Option(min=1, help="Experts' files, if fewer than experts.")] = None,
    seed: int = 0,
    dtype: Dtype = "float32",
    with_clip: Annotated[bool, typer.Option("--with-clip", help="Make the base a full CLIP, for evaluation.")] = False,
    layers: Annotated[int | None, typer.Option(min=1, help="Encoder layers, if not the real number.")] = None,
    width: Annotated[int | None, typer.Option(min=64, help="Hidden size, a multiple of 64.")] = None,
    spread: Annotated[float, typer.Option(min=0, help="Standard deviation of task vectors.")] = 3e-4,
    correlation: Annotated[float, typer.Option(min=0, max=0.999, help="Mean cosine of two task vectors.")] = 0.0,
) -> None:
    """Make a random pool of real geometry."""
    recipe = Recipe(arch, seed, dtype, with_clip, layers, width, spread, correlation)
    make_pool(out or Path(".bench") / arch, recipe, experts, files)


if __name__ == "__main__":
    typer.run(main)
