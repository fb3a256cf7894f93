"""What `scripts/make_tiny.py` makes: the same again from the same sources and the same base."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clipfuse.checkpoints.expert_facts import read_facts
from clipfuse.config.presets import load_preset
from clipfuse.run.finetune import fine_tune
from clipfuse.run.finetune_config import finetune_config
from clipfuse.tiny import WEIGHTS, digits, glyphs, sprites
from clipfuse.tiny.suite import SUITE

SCRIPTS = Path(__file__).parents[2] / "scripts"


def python(code: str, *words: object) -> None:
    """Run code with the scripts importable."""
    command = [sys.executable, "-W", "ignore", "-c", f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})\n{code}"]
    subprocess.run([*command, *map(str, words)], check=True)


@pytest.mark.network  # npm and Debian
@pytest.mark.timeout(600)
def test_the_sources_give_the_shipped_art(tmp_path: Path) -> None:
    python(
        "from pathlib import Path; from tiny import atlas, packing, sources; folder = Path(sys.argv[1])\n"
        "sources.SOURCES = folder / 'sources'; sources.fetch()\n"
        "atlas.pack_sprites(folder / 'sprites'); atlas.pack_glyphs(folder / 'glyphs')\n"
        "packing.pack_digits(folder / 'digits.npz')\n",
        tmp_path,
    )
    for shipped in (sprites.ATLAS, glyphs.ATLAS):
        for suffix in (".png", ".json"):
            made = tmp_path / f"{shipped.name}{suffix}"
            assert made.read_bytes() == shipped.with_suffix(suffix).read_bytes()
    assert (tmp_path / "digits.npz").read_bytes() == digits.SCANS.read_bytes()


def test_the_shipped_experts_are_those_of_the_command() -> None:
    settings = finetune_config({"taskpool": load_preset("taskpool", "tiny_TA8"), "recipe": "tiny"}).settings()
    base = hashlib.sha256((WEIGHTS / "base" / "model.safetensors").read_bytes()).hexdigest()
    for task in SUITE:
        facts = read_facts(WEIGHTS / task.name)
        assert facts
        assert facts["recipe"] == {"name": "tiny", **settings}
        assert facts["base"]["files"] == {"model.safetensors": base}
        assert [of_task["name"] for of_task in facts["tasks"]] == [task.name]


def test_the_command_finds_a_shipped_expert_as_its_own(tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS / "tiny-digits", tmp_path / "tiny-digits")
    assert fine_tune(task=["tiny-digits"], recipe="tiny", out=str(tmp_path))[0].kept


def test_a_leg_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    python(
        "import torch; from pathlib import Path; from clipfuse.tiny import WEIGHTS\n"
        "from tiny import training; from transformers import CLIPModel, CLIPTokenizer\n"
        "pictures = torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8)\n"
        "leg = training.Leg(5, pictures, [f'picture {i % 7}' for i in range(40)], passes=2, batch=8, peak=1e-3)\n"
        "tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / 'base')\n"
        "def run(name, stop):\n"
        "    clip, real, calls = CLIPModel.from_pretrained(WEIGHTS / 'base'), training.contrast, []\n"
        "    def contrast(*arguments):\n"
        "        calls.append(1)\n"
        "        if len(calls) == stop:\n"
        "            raise KeyboardInterrupt\n"
        "        return real(*arguments)\n"
        "    training.contrast = contrast\n"
        "    try:\n"
        "        training.pretrain(clip, tokenizer, leg, Path(sys.argv[1]) / name, lambda line: None, every=0)\n"
        "    except KeyboardInterrupt:\n"
        "        pass\n"
        "    training.contrast = real\n"
        "    return len(calls), clip.state_dict()\n"
        "whole = run('whole', 0)\n"
        "assert whole[0] == 10 and run('parts', 7)[0] == 7\n"
        "rest = run('parts', 0)\n"
        "assert rest[0] == 4\n"
        "assert all(torch.equal(value, rest[1][name]) for name, value in whole[1].items())\n",
        tmp_path,
    )
