"""The task-arithmetic authors' pickles, laid out as they publish them: a pool, merged with their projections."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import clipfuse
from clipfuse.checkpoints.checkpoint import from_memory
from clipfuse.checkpoints.geometry import find_geometry
from clipfuse.checkpoints.names import PROJECTION, hub_name
from clipfuse.checkpoints.torch_file import TorchFile
from clipfuse.cli.main import main
from clipfuse.config.pool_folder import folder_pool
from clipfuse.models.clip_base import open_base
from clipfuse.pool import HuggingFaceClipVisionPool
from clipfuse.pool.task_vector import TaskVector
from tests.openclip_reference import image_features, random_openclip
from tests.random_clip import write_random_clip

HEADS = 2
TASKS = ("Cars", "DTD", "SUN397")


def module_of(state: Mapping[str, Tensor], activation: type[nn.Module]) -> nn.Module:
    """Modules nested as the names of a state dict say; attentions are torch's."""
    root = nn.Module()
    inside: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        first, dot, rest = name.partition(".")
        if dot:
            inside.setdefault(first, {})[rest] = value
        else:
            root.register_parameter(name, nn.Parameter(value.clone()))
    for name, part in inside.items():
        if name == "attn":
            child: nn.Module = nn.MultiheadAttention(len(part["out_proj.bias"]), HEADS)
            child.load_state_dict(part)
        else:
            child = module_of(part, activation)
        root.add_module(name, child)
        if name == "mlp":
            child.add_module("gelu", activation())
    return root


def save_encoder(state: Mapping[str, Tensor], path: Path) -> None:
    """A whole `src.modeling.ImageEncoder`, whose classes are forgotten afterwards."""
    names = {"src": "", "src.modeling": "ImageEncoder", "open_clip": "", "open_clip.model": "QuickGELU"}
    modules: dict[str, Any] = {name: ModuleType(name) for name in names}
    kinds: dict[str, Any] = {}
    for name, cls in names.items():
        if cls:
            kinds[cls] = type(cls, (nn.Module,), {"__module__": name})
            setattr(modules[name], cls, kinds[cls])
    sys.modules |= modules
    try:
        encoder = kinds["ImageEncoder"]()
        encoder.model = module_of(state, kinds["QuickGELU"])
        encoder.cache_dir = "~/.cache"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(encoder, path)
    finally:
        for name in names:
            del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`zeroshot.pt`, and three experts whose projections were trained too; the text encoder is not in them."""
    root = tmp_path_factory.mktemp("authors") / "ViT-S-4"
    base = {name: value for name, value in random_openclip().items() if not name.startswith("transformer.")}
    save_encoder(base, root / "zeroshot.pt")
    for seed, task in enumerate(TASKS):
        random = torch.Generator().manual_seed(seed)
        trained = {
            name: value + (0.02 * torch.randn(value.shape, generator=random) if name.startswith("visual.") else 0)
            for name, value in base.items()
        }
        save_encoder(trained, root / task / "finetuned.pt")
    return root


def state_of(path: Path) -> dict[str, Tensor]:
    """A pickle's tensors under open_clip's names."""
    file = TorchFile(path)
    return {name.removeprefix("model."): file.read(name) for name in file.specs}


def test_the_folder_is_a_pool_and_projections_are_merged(folder: Path, tmp_path: Path):
    pool = HuggingFaceClipVisionPool.from_yaml(folder)
    assert pool.model_names == TASKS
    assert pool.geometry("Cars").num_attention_heads == HEADS, "the attention says so, shapes do not"
    merged = clipfuse.merge(pool, "task_arithmetic", scaling_factor=0.4, out=tmp_path / "merged")
    states = {
        name: state_of(folder / path)
        for name, path in [("", "zeroshot.pt"), *((t, f"{t}/finetuned.pt") for t in TASKS)]
    }
    base = states.pop("")
    wanted = {name: value + 0.4 * sum(state[name] - value for state in states.values()) for name, value in base.items()}
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    features = image_features(wanted, pixels, HEADS)
    with torch.no_grad():
        pooled = merged.load_model()(pixel_values=pixels).pooler_output
    projection = load_file(tmp_path / "merged/model.safetensors")["visual_projection.weight"]
    torch.testing.assert_close(projection, wanted["visual.proj"].T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pooled @ projection.T, features, rtol=1e-5, atol=1e-5)
    again = clipfuse.load(tmp_path / "merged")
    assert "visual_projection.weight" in again.tensors


def test_the_merged_model_is_scored_with_its_own_projection(folder: Path, tmp_path: Path):
    merged = clipfuse.merge(str(folder), "simple_average", out=tmp_path / "merged")
    write_random_clip(tmp_path / "base", "smaller")
    base = open_base(str(tmp_path / "base"))
    states = [state_of(folder / task / "finetuned.pt") for task in TASKS]
    mean = {name: sum(state[name] for state in states) / len(states) for name in states[0]}
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    wanted = image_features(mean, pixels, HEADS)
    for model in (merged, clipfuse.load(tmp_path / "merged")):
        torch.testing.assert_close(model.encoder(base).features(pixels, None), wanted, rtol=1e-5, atol=1e-5)
    without = image_features(mean | {"visual.proj": base.projection.T}, pixels, HEADS)
    assert (without - wanted).abs().max() > 1e-2


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A command that goes well; what it prints."""

    def command(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["clipfuse", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        assert not left.value.code, err
        return out

    return command


def test_what_the_page_on_models_says(folder: Path, tmp_path: Path, run: Callable[..., str]):
    """The base of the recipe has no text side: `base=` gives it, for scores and for formats that need one."""
    write_random_clip(tmp_path / "base", "smaller")
    base, merged = f"base={tmp_path / 'base'}", tmp_path / "merged"
    run("merge", "method=task_arithmetic", f"modelpool={folder}", "--out", merged)
    said = run("evaluate", merged, "taskpool.tasks=[tiny-digits]", base, "--limit", 40)
    assert "merged" in said
    run("convert", merged, tmp_path / "openclip", "--to", "openclip", base)
    run("convert", merged, tmp_path / "clip", "--to", "clip", base)
    again = load_file(tmp_path / "clip/model.safetensors")
    assert torch.equal(again["visual_projection.weight"], clipfuse.load(merged).tensors["visual_projection.weight"])
    words = ("--out", tmp_path / "scores", "taskpool.tasks=[tiny-digits]", base, "--limit", 40)
    run("evaluate", merged, *words)
    told = ("--dry-run", "--clip", "--records", tmp_path / "scores", "--out", tmp_path / "published")
    run("publish", merged, "lab/merge", *told)
    published = load_file(tmp_path / "published/model.safetensors")
    assert all(torch.equal(value, published[name]) for name, value in again.items())
    run("convert", folder / "DTD/finetuned.pt", tmp_path / "lora", "--to", "lora", f"base={folder / 'zeroshot.pt'}")
    deep = run("show", "model", folder / "DTD/finetuned.pt", f"base={folder / 'zeroshot.pt'}", "--deep")
    assert deep.endswith("warnings:\n  none\n")


def test_show_and_convert(folder: Path, tmp_path: Path, run: Callable[..., str]):
    said = run("show", "model", folder / "Cars/finetuned.pt")
    assert "family: whole module of the task-arithmetic authors (open_clip)" in said
    assert "quick_gelu" in said
    run("convert", folder / "Cars/finetuned.pt", tmp_path / "hf", "--to", "hf")
    stored = load_file(tmp_path / "hf/model.safetensors")
    state = state_of(folder / "Cars/finetuned.pt")
    assert torch.equal(stored["visual_projection.weight"], state["visual.proj"].T)
    fused = state["visual.transformer.resblocks.0.attn.in_proj_weight"]
    parts = [stored[f"vision_model.encoder.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(torch.cat(parts), fused)


METHODS = ("continual_average", "continual_task_arithmetic", "opcm", "continual_ties", "knots", "tsv_merging")


@pytest.mark.parametrize("name", METHODS)
def test_rules_merge_a_projection_like_any_matrix(folder: Path, tmp_path: Path, name: str):
    """A twin of it under a layer's name comes out the same."""
    pool = HuggingFaceClipVisionPool.from_yaml(folder)
    deltas = {task: pool.task_vector(task) for task in TASKS}
    assert all(PROJECTION in delta.tensors for delta in deltas.values())
    zero = {key: pool.weights.lead[key] for key in pool.weights.specs}
    alias = "encoder.layers.0.mlp.fc1.weight"
    twin = {task: TaskVector({**d.tensors, alias: d.tensors[PROJECTION]}) for task, d in deltas.items()}
    base = {**zero, alias: zero[PROJECTION]}
    stored = {hub_name(key): value for key, value in base.items()}
    found = clipfuse.merge({"_pretrained_": stored, **twin}, name).tensors
    moved = found[PROJECTION] - base[PROJECTION]
    assert moved.abs().max() > 1e-4
    torch.testing.assert_close(moved, found[alias] - base[alias], rtol=1e-5, atol=1e-7)


def test_an_expert_is_added_to_what_was_merged_from_pickles(folder: Path, tmp_path: Path):
    pool = HuggingFaceClipVisionPool.from_tree({"models": folder_pool(folder)["models"][:-1]})
    clipfuse.merge(pool, "continual_average", out=tmp_path / "two")
    clipfuse.add(str(tmp_path / "two"), str(folder / "SUN397/finetuned.pt"), name="SUN397", out=tmp_path / "three")
    whole = clipfuse.merge(str(folder), "continual_average")
    found = clipfuse.load(tmp_path / "three")
    assert set(found.tensors) == set(whole.tensors)
    for key in whole.tensors:
        torch.testing.assert_close(found.tensors[key], whole.tensors[key], rtol=1e-6, atol=1e-7)


def test_a_pickle_of_the_real_geometry_comes_back_bit_by_bit(tmp_path: Path, run: Callable[..., str]):
    """ViT-B/32: a pickle converted for transformers, against the state dict that was pickled."""
    state = {n: v for n, v in random_openclip(768, 12, 32, 7, 512).items() if not n.startswith("transformer.")}
    save_encoder(state, tmp_path / "finetuned.pt")
    run("convert", tmp_path / "finetuned.pt", tmp_path / "hf", "--to", "hf")
    found = from_memory(load_file(tmp_path / "hf/model.safetensors"), "hf").with_projection()
    wanted = from_memory(state, "state").with_projection()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert find_geometry(tmp_path / "hf", found).num_attention_heads == HEADS
