"""Pages that are run: their files are written, their Python and their commands run from top to bottom, in one folder."""

import ast
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from clipfuse.cli.main import main
from clipfuse.config.presets import presets
from clipfuse.fusion.loading import load_installed
from clipfuse.run.finetune_config import FinetuneConfig

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r'^```python(?: title="(?P<file>[^"]+)")?\n(?P<code>.*?)^```|^    (?P<command>clipfuse [^\n]*)$', re.M | re.S
)


def run_page(page: str, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a page in a folder; what its Python has defined."""
    patch.chdir(folder)
    names: dict[str, Any] = {}
    for found in BLOCK.finditer((ROOT / "docs" / page).read_text(encoding="utf-8")):
        if found["command"]:
            patch.setattr(sys, "argv", shlex.split(found["command"]))
            with pytest.raises(SystemExit) as left:
                main()
            assert left.value.code in (0, None), found["command"]
        elif found["file"]:
            Path(found["file"]).write_text(found["code"], encoding="utf-8")
        else:
            exec(compile(found["code"], page, "exec"), names)
    return names


def test_the_table_of_methods_is_that_of_the_registry(own_rules: None):
    load_installed.cache_clear()
    page = runpy.run_path(str(ROOT / "scripts/method_table.py"))["page"]()
    written = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    assert written == page, (
        "docs/methods.md is not what the registry says; run: make docs (or python scripts/method_table.py)"
    )


def test_add_a_method(
    own_rules: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run_page("add_a_method.md", tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    told = re.search(r"^```text\n(.*?)^```", (ROOT / "docs/add_a_method.md").read_text(encoding="utf-8"), re.M | re.S)
    assert told
    for line in told[1].splitlines():
        assert f"\n{line}" in f"\n{printed}", printed
    assert (tmp_path / "run/report.md").is_file()
    assert ast.literal_eval(printed[printed.index("[{'file'") :].splitlines()[0])[0]["file"] == "my_rules.py"


def test_finetuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/finetuning.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        exec(compile(code, "finetuning.md", "exec"), names)
    assert names["expert"].steps == 20
    assert "experts/tiny-signs" in capsys.readouterr().out
    shown = [(f"`{name}", f"{name}=", f"--{name.replace('_', '-')}") for name in FinetuneConfig.model_fields]
    unnamed = [words[0] for words in shown if not any(word in page for word in words)]
    assert not unnamed
    assert all(f"`{name}`" in page for name in presets("recipe"))


def test_data(own_rules: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    names = run_page("data.md", tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert "adamerging on test (transductive)" in printed
    row = names["merged"].recipe["data"][0]
    assert (row["split"], row["images"], row["labels"], row["passes"]) == ("train", 16, False, 1.0)
    again, first = ((tmp_path / name / "merged/model.safetensors").read_bytes() for name in ("again", "plusplus"))
    assert again == first, "coefficients that are applied again give the same bits"


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_no_figure_is_missing(page: str):
    assert not re.search(r"\bFIGURE\b|^TABLE$|\bTODO\b", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.M)


def test_negation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    names = run_page("negation.md", tmp_path, monkeypatch)
    printed = capsys.readouterr().out.split()
    page = (ROOT / "docs/negation.md").read_text(encoding="utf-8")
    told = " ".join(re.findall(r"^```text\n(.*?)^```", page, re.M | re.S)).split()
    assert len(printed) == len(told)
    for found, wanted in zip(printed, told, strict=True):
        a, b = (word.strip("(),") for word in (found, wanted))
        near = re.fullmatch(r"\d+\.\d", a) and re.fullmatch(r"\d+\.\d", b)
        assert abs(float(a) - float(b)) <= 1.0 if near else a == b, f"{found} printed, {wanted} in docs/negation.md"
    kept, base = (names["val"][model]["tiny-vehicles"].accuracy for model in (names["chosen"], "base"))
    assert 0.95 * base <= kept
