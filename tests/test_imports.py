"""What is imported when: seconds matter at the prompt, and merging needs no transformers."""

import subprocess
import sys
from pathlib import Path

import pytest


def modules_after(code: str) -> set[str]:
    """Top-level packages that are imported after running some code in a new interpreter."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_clipfuse_loads_nothing_heavy():
    assert not modules_after("import clipfuse") & {"torch", "transformers", "numpy", "pydantic", "yaml", "hydra"}


def test_naming_the_pool_class_is_lazy():
    assert "transformers" not in modules_after("from clipfuse import HuggingFaceClipVisionPool")


@pytest.mark.parametrize("command", ["--help", "ls modelpools", "merge --help"])
def test_the_prompt_loads_no_torch(command: str):
    code = f"import sys; sys.argv = ['clipfuse', *{command.split()!r}]\nfrom clipfuse.cli.main import main\ntry: main()\nexcept SystemExit: pass"
    assert not modules_after(code) & {"torch", "transformers", "datasets", "hydra"}


def test_merging_in_python_imports_four_packages(tmp_path: Path):
    """torch, safetensors, numpy and pydantic; reading a YAML file adds PyYAML; nothing else of our dependencies."""
    code = f"""
import clipfuse
pool = clipfuse.HuggingFaceClipVisionPool.from_yaml("tiny_TA8")
clipfuse.merge(pool, "ties_merging", edits=["dare"], out={str(tmp_path / "out")!r})
"""
    torch_alone = modules_after("import torch, safetensors, numpy, pydantic, annotated_types, yaml")
    allowed = torch_alone | set(sys.stdlib_module_names) | {"clipfuse"}
    assert {name for name in modules_after(code) - allowed if not name.startswith("_")} == set()


def test_merging_in_memory_needs_no_yaml():
    code = """
import clipfuse, torch
weights = {"embeddings.class_embedding": torch.ones(4)}
clipfuse.merge({"_pretrained_": weights, "a": weights}, "ties_merging")
"""
    assert not modules_after(code) & {"yaml", "hydra", "transformers", "huggingface_hub"}
