"""Plug-ins from the command line: every verb, run files, models without the plug-in, and what must not run one."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import clipfuse
from clipfuse.cli.main import main
from clipfuse.fusion.registry import METHODS

pytestmark = pytest.mark.usefixtures("own_rules")
POOL = "modelpool=tiny_TA8"
TASKS = "taskpool={tasks: [tiny-digits]}"
Clipfuse = Callable[..., tuple[int, str, str]]

HALVE = '''
from pathlib import Path
from torch import Tensor
from clipfuse.plugin import DeltaConfig, Leaf, Paper, method

Path("was_run").touch()

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
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Clipfuse:
    """Runs the command line in a folder with `my_rules.py`."""
    monkeypatch.chdir(tmp_path)
    Path("my_rules.py").write_text(HALVE, encoding="utf-8")

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipfuse", *words])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return command


def test_every_verb_that_knows_methods_takes_a_plugin(run: Clipfuse):
    plugin = ("--plugin", "my_rules.py")
    status, out, _ = run("ls", "methods", *plugin)
    assert (status, "halve" in out) == (0, True)
    status, out, _ = run("show", "method", "halve", *plugin)
    assert (status, "halve of the plug-in my_rules.py" in out) == (0, True)
    assert json.loads(run("show", "method", "halve", *plugin, "--json")[1])["plugin"] == "my_rules.py"
    status, out, _ = run("check", "method=halve", POOL, *plugin)
    assert (status, "halve of 8 experts" in out) == (0, True)
    assert run("merge", "method=halve", POOL, "--out", "a", *plugin)[0] == 0
    assert run("merge", "method=halve", POOL, "--out", "b", "plugins=[my_rules.py]")[0] == 0
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()


def test_a_run_with_a_plugin_can_be_run_again(run: Clipfuse):
    words = ("--limit", "20", "--plugin", "my_rules.py", "baselines=none")
    status, out, err = run("run", "method=halve", POOL, TASKS, *words, "--out", "first")
    assert (status, "halve" in out, "note" in err) == (0, True, False)
    recipe = json.loads(Path("first/merged/clipfuse.json").read_text())
    assert recipe["plugins"][0]["sha256"] == hashlib.sha256(Path("my_rules.py").read_bytes()).hexdigest()
    METHODS.pop("halve")
    status, _, err = run("run", "first/config.yaml", "--out", "second")
    assert status == 0
    assert "note: first/config.yaml names a plug-in, which is run: my_rules.py" in err
    weights = [Path(folder, "merged/model.safetensors").read_bytes() for folder in ("first", "second")]
    assert weights[0] == weights[1]


def test_results_need_no_plugin(run: Clipfuse):
    run("merge", "method=halve", POOL, "--out", "merged", "--plugin", "my_rules.py")
    METHODS.pop("halve")
    Path("my_rules.py").unlink()
    merged = clipfuse.load("merged")
    assert merged.config["method"]["name"] == "halve"
    merged.save("copy")
    status, out, err = run("evaluate", "merged", "copy", TASKS, "--limit", "20")
    assert (status, "merged" in out) == (0, True), err
    assert "my_rules.py" in Path("merged/README.md").read_text()


NOT_RUN = {
    "modelpool": "type: huggingface_clip_vision\nplugins: [my_rules.py]\nmodels: {a: 'pkg://clipfuse/tiny/weights/base'}",
    "taskpool": "type: clip_vit_classification\nplugins: [my_rules.py]\ntasks: [tiny-digits]",
    "method": "name: magmax\nplugins: [my_rules.py]",
}


@pytest.mark.parametrize("group", NOT_RUN)
def test_only_a_run_names_plugins(run: Clipfuse, group: str):
    Path("other.yaml").write_text(NOT_RUN[group])
    words = {"method": "method=magmax", "modelpool": POOL, "taskpool": TASKS} | {group: f"{group}=other.yaml"}
    status, _, err = run("run", *words.values(), "--out", "out")
    assert (status, "unknown key 'plugins'" in err) == (2, True), err
    assert not Path("was_run").exists()


def test_words_of_fusionbench_run_no_plugin(run: Clipfuse):
    Path("fb.yaml").write_text(
        "_target_: my_rules.Halve\n_recursive_: false\nfabric: {_target_: my_rules.halve}\n"
        "method: {name: magmax}\nmodelpool: tiny_TA8\ntaskpool: {tasks: [tiny-digits]}\n"
    )
    run("check", "fb.yaml")
    assert not Path("was_run").exists()


BAD = {
    "no such file": (["--plugin", "nowhere.py"], "plugins: nowhere.py: cannot be read"),
    "no python": (["--plugin", "notes.txt"], "is no Python file"),
    "no list": (["plugins=my_rules.py"], "plugins"),
    "no list with an option": (["plugins=3", "--plugin", "my_rules.py"], "plugins"),
    "syntax": (["--plugin", "syntax.py"], "syntax.py:1: invalid syntax"),
    "not loaded": ([], "unknown method 'halve'"),
    "fails in the rule": (["--plugin", "fails.py"], "fails.py:17: ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize(("words", "says"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("verb", ["merge", "run"])
def test_bad_plugins_are_one_line(run: Clipfuse, verb: str, words: list[str], says: str):
    Path("syntax.py").write_text("def f(:")
    Path("fails.py").write_text(HALVE.replace("* cfg.share", "* (1 / 0)"))
    status, _, err = run(
        verb, "method=halve", POOL, *([TASKS, "--limit", "5"] if verb == "run" else []), "-o", "out", *words
    )
    assert (status, says in err, len(err.strip().splitlines())) == (2, True, 1), err
    assert not Path("out").exists()
