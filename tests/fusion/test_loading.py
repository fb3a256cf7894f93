"""Plug-ins: what a file registers, what is said of a wrong one, installed ones, and what a recipe keeps."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import clipfuse
from clipfuse.errors import ConfigError
from clipfuse.fusion import loading
from clipfuse.fusion.registry import METHODS, TABLES, find

pytestmark = pytest.mark.usefixtures("own_rules")

HALVE = '''
from torch import Tensor
from clipfuse.plugin import DeltaConfig, Leaf, Paper, method

class Halve(DeltaConfig):
    """Δ = share · mean_k τ_k."""

    share: float = 0.5
    """What is taken of the mean."""

@method(paper=Paper("Halving", "Nobody, Ann", 2026), grain="element")
def halve(leaf: Leaf, cfg: Halve) -> Tensor:
    """Half of the mean. Source: here."""
    return leaf.deltas.mean(0) * cfg.share
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "my_rules.py"
    path.write_text(HALVE, encoding="utf-8")
    return path


def test_a_plugin_is_a_method_like_any_other(plugin: Path, models):
    (rule,) = clipfuse.load_plugin(plugin)
    assert METHODS["halve"] is rule
    assert rule.config.model_fields["share"].description == "What is taken of the mean."
    merged = clipfuse.merge(models, "halve", edits=["dare"])
    assert merged.recipe["plugins"] == [
        {"file": "my_rules.py", "sha256": hashlib.sha256(plugin.read_bytes()).hexdigest()}
    ]
    assert str(plugin.parent) not in str(merged.recipe)
    assert "plugins" not in clipfuse.merge(models, "magmax").recipe
    half = clipfuse.merge(models, "halve").tensors
    want = clipfuse.merge(models, "task_arithmetic", scaling_factor=0.5 / 3).tensors
    for name, tensor in want.items():
        torch.testing.assert_close(half[name], tensor, atol=1e-7, rtol=1e-6)


def test_loading_twice_is_harmless_and_a_change_is_taken_up(plugin: Path):
    first = clipfuse.load_plugin(plugin)
    assert clipfuse.load_plugin(str(plugin)) == first
    plugin.write_text(HALVE.replace("def halve", "def third").replace("0.5", "0.3"), encoding="utf-8")
    (rule,) = clipfuse.load_plugin(plugin)
    assert (rule.name, "halve" in METHODS) == ("third", False)
    assert rule.config.model_fields["share"].default == 0.3
    plugin.write_text(HALVE + "\nno_such_thing\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="NameError"):
        clipfuse.load_plugin(plugin)
    assert METHODS["third"] is rule
    assert "halve" not in METHODS


WRONG = {
    "syntax": ("x = 1\ndef f(:\n", "wrong.py:2: invalid syntax"),
    "name": (HALVE + "\n\nprint(undefined)\n", "wrong.py:17: NameError: name 'undefined' is not defined"),
    "inside": ("def f():\n    return 1 / 0\n\n\nf()\n", "wrong.py:2: ZeroDivisionError"),
    "missing module": ("import no_such_module\n", "wrong.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
    "leaves": ("raise SystemExit\n", "wrong.py:1: SystemExit"),
    "several lines": ("raise ValueError('one\\ntwo')\n", "wrong.py:1: ValueError: one two"),
    "no rule": ("x = 1\n", "registers no method, edit, finish or after"),
    "taken": (HALVE.replace("def halve", "def magmax"), "wrong.py:11: the name 'magmax' is taken by the method of fusion/magmax.py"),
    "twice": (HALVE + HALVE.replace("class", "\nclass"), "the name 'halve' is taken by the method of"),
    "no settings": (HALVE.replace("cfg: Halve", "cfg"), "wrong.py:11: halve: its parameter cfg needs the class of its settings"),
    "no λ": (HALVE.replace("(DeltaConfig)", "(Config)").replace("import Delta", "import Config, Delta"), "a DeltaConfig: cfg: MySettings"),
    "wrong setting": (HALVE.replace('share: float = 0.5', 'share: Strange = 0.5'), "wrong.py:8: NameError"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_plugin_is_one_line_and_leaves_nothing(source: str, says: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("wrong.py").write_text(source, encoding="utf-8")
    before, modules = {kind: dict(table) for kind, table in TABLES.items()}, set(sys.modules)
    with pytest.raises(ConfigError) as caught:
        clipfuse.load_plugin("wrong.py")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before == TABLES
    assert not [name for name in set(sys.modules) - modules if name.startswith("clipfuse_plugin")]


@pytest.mark.parametrize(
    ("path", "says"), [("nowhere.py", "No such file"), ("ties_merging", "is no Python file"), (".", "no Python file")]
)
def test_what_is_no_plugin(path: str, says: str):
    with pytest.raises(ConfigError, match=says):
        clipfuse.load_plugin(path)


@pytest.mark.parametrize("paths", ["my_rules.py", 3, [1], {"a.py": 1}, None])
def test_plugins_are_a_list(paths):
    with pytest.raises(ConfigError, match="takes a list of Python files"):
        loading.load_plugins(paths)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("found = leaf.deltas.mean(0)", "halve: gave a NoneType for"),
        ("return leaf.deltas", r"halve: gave \(3, 64\) for"),
    ],
)
def test_a_rule_that_gives_something_else_is_told(plugin: Path, models, body: str, says: str):
    plugin.write_text(HALVE.replace("return leaf.deltas.mean(0) * cfg.share", body), encoding="utf-8")
    clipfuse.load_plugin(plugin)
    with pytest.raises(ConfigError, match=says):
        clipfuse.merge(models, "halve")


def test_an_edit_gives_as_many_task_vectors_as_it_got(plugin: Path, models):
    text = HALVE.replace("method", "edit")
    plugin.write_text(text, encoding="utf-8")
    clipfuse.load_plugin(plugin)
    with pytest.raises(ConfigError, match=r"halve: gave \(64,\) for embeddings.class_embedding, it takes \(3, 64\)"):
        clipfuse.merge(models, "magmax", edits=["halve"])


def installed(folder: Path, module: str, source: str) -> None:
    """A package in `folder` that names a module as a plug-in."""
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[clipfuse.plugins]\n{module} = {module}\n")


def test_installed_plugins_are_imported_when_a_name_is_not_known(tmp_path, monkeypatch, caplog):
    installed(tmp_path, "sound_rules_for_tests", HALVE)
    installed(tmp_path, "broken_rules_for_tests", HALVE.replace("def halve", "def magmax"))
    monkeypatch.syspath_prepend(tmp_path)
    loading.load_installed.cache_clear()
    find("method", "magmax")
    assert "sound_rules_for_tests" not in sys.modules
    rule = find("method", "halve")
    assert rule.origin
    assert rule.origin.file == "sound_rules_for_tests.py"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "broken_rules_for_tests of broken_rules_for_tests 1.0 is left out" in caplog.text
    assert "the name 'magmax' is taken" in caplog.text
    with pytest.raises(ConfigError, match="did you mean 'halve'"):
        find("method", "halv")


def test_a_cell_of_a_notebook_may_be_run_again():
    cell = HALVE + "\nfrom clipfuse import merge\nfrom clipfuse.testing import random_models\n"
    cell += "recipe = merge(random_models(), 'halve').recipe\nassert recipe['plugins'] == [{'file': '<cell>', 'sha256': None}], recipe\n"
    code = f"for _ in range(2): exec(compile({cell!r}, '<cell>', 'exec'), globals())"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
