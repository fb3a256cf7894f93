"""The command line on the offline suite: what a user types, what is left on disk, what is said when it fails."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import clipfuse
from clipfuse.cli.main import main
from clipfuse.evaluate.record import read_records
from clipfuse.tiny.suite import SUITE

POOL = "modelpool=tiny_TA8"
TASKS = "taskpool={tasks: [tiny-digits, tiny-signs]}"
TINY = (POOL, TASKS)


def clipfuse_command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Status, standard output and standard error of one command, run in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["clipfuse", *map(str, words)])
        main()
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_run_twice_gives_the_same_weights_and_records(tmp_path, capsys):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        words = ("run", "method=ties_merging", "edits=[dare]", *TINY, "--limit", 100, "--seed", 5, "--out", folder)
        status, out, _ = clipfuse_command(capsys, *words)
        assert status == 0
        assert "dare + ties_merging" in out
    assert len({sha256(folder / "merged/model.safetensors") for folder in folders}) == 1
    first, second = (read_records(folder / "records.jsonl") for folder in folders)
    assert all(a.same_as(b) for a, b in zip(first, second, strict=True))
    assert not first[0].same_as(second[1])
    assert {(r.model, r.task, r.n) for r in first} >= {
        ("dare + ties_merging", "tiny-signs", 100),
        ("pre-trained", "tiny-digits", 100),
    }
    assert {r.role for r in first} == {"base", "expert", "merged"}


def test_a_run_leaves_all_that_is_needed(tmp_path, capsys):
    folder = tmp_path / "run"
    clipfuse_command(
        capsys, "run", "method=task_arithmetic", "method.scaling_factor=0.5", *TINY, "--limit", 60, "-o", folder
    )
    names = {
        ".clipfuse",
        "clipfuse.lock",
        "config.yaml",
        "log.txt",
        "merged",
        "records.jsonl",
        "predictions",
        "report.csv",
        "report.json",
        "report.tex",
        "report.md",
    }
    assert {path.name for path in folder.iterdir()} == names
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["method"] == {"name": "task_arithmetic", "scaling_factor": 0.5, "weights": None}
    report = json.loads((folder / "report.json").read_text())
    records = {r.task: r for r in read_records(folder / "records.jsonl") if r.role == "merged"}
    assert report["tiny-signs"]["accuracy"] == records["tiny-signs"].accuracy
    assert report["average"]["accuracy"] == pytest.approx(sum(r.accuracy for r in records.values()) / 2)
    low, high = records["tiny-digits"].interval
    assert low < records["tiny-digits"].accuracy < high
    own = next(r for r in read_records(folder / "records.jsonl") if (r.model, r.task) == ("tiny-digits", "tiny-digits"))
    assert records["tiny-digits"].normalised == pytest.approx(records["tiny-digits"].accuracy / own.accuracy)
    assert (folder / "report.md").read_text().startswith("| model | tiny-digits | tiny-signs |")
    # the resolved configuration is itself a run file
    status, _, _ = clipfuse_command(capsys, "run", folder / "config.yaml", "--out", tmp_path / "again")
    assert status == 0
    assert sha256(tmp_path / "again/merged/model.safetensors") == sha256(folder / "merged/model.safetensors")


def test_a_list_of_values_merges_once_chooses_on_val_and_reports_test(tmp_path, capsys):
    words = ("method=task_arithmetic", "method.scaling_factor=0.1,0.6,3.0", "select=val", *TINY, "baselines=none")
    status, out, _ = clipfuse_command(capsys, "run", *words, "--limit", 80, "--out", tmp_path / "run")
    assert status == 0
    note = re.search(r"mean accuracy on val: (.*); chosen: (.*)\.$", (tmp_path / "run/report.md").read_text(), re.M)
    assert note
    curve = {value: float(mean) for value, mean in (entry.split(": ") for entry in note[1].split(", "))}
    assert list(curve) == ["0.1", "0.6", "3"]
    best = note[2]
    assert curve[best] == max(curve.values()) > curve["3"]
    assert f"task_arithmetic λ={best}" in out
    records = read_records(tmp_path / "run/records.jsonl")
    assert {r.split for r in records} == {"test"}
    assert all(r.uses == ["val_images", "val_labels"] for r in records)
    words = (
        "merge",
        "method=task_arithmetic",
        f"method.scaling_factor={best}",
        POOL,
        "--out",
        tmp_path / "one",
    )
    assert json.loads((tmp_path / "run/merged/clipfuse.json").read_text())["uses"] == ["val_images", "val_labels"]
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["method"]["scaling_factor"] == [0.1, 0.6, 3.0]
    assert f"scaling_factor={best} is chosen" in (tmp_path / "run/log.txt").read_text()
    clipfuse_command(capsys, *words)
    assert sha256(tmp_path / "one/model.safetensors") == sha256(tmp_path / "run/merged/model.safetensors")


def test_merged_folders_are_models_for_everyone(tmp_path, capsys):
    from transformers import CLIPVisionModel

    folder = tmp_path / "merged"
    status, out, _ = clipfuse_command(capsys, "merge", "method=magmax", POOL, "--out", folder, "--json")
    assert status == 0
    assert json.loads(out)["recipe"]["method"]["name"] == "magmax"
    theirs, info = CLIPVisionModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours = clipfuse.load(folder)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs.float()(pixels).pooler_output, ours.load_model()(pixels).pooler_output)
    ours.save(tmp_path / "copy")
    assert sha256(tmp_path / "copy/model.safetensors") == sha256(folder / "model.safetensors")
    assert json.loads((tmp_path / "copy/clipfuse.json").read_text()) == dict(ours.recipe)
    status, out, _ = clipfuse_command(capsys, "evaluate", folder, tmp_path / "copy", TASKS, "--limit", 50, "--json")
    rows = json.loads(out)
    assert status == 0
    assert len({row["correct"] for row in rows if row["task"] == "tiny-signs"}) == 1
    assert {row["role"] for row in rows} == {"merged"}


def test_adding_an_expert_gives_the_files_of_merging_it_with_the_others(tmp_path, capsys):
    weights = Path(clipfuse.__file__).parent / "tiny/weights"

    def pool(*names: str) -> str:
        models = {"_pretrained_": weights / "base", **{name: weights / name for name in names}}
        return "modelpool={models: {" + ", ".join(f"{name}: '{path}'" for name, path in models.items()) + "}}"

    merge = ("merge", "method=opcm", "method.scaling_factor=0.8", "edits=[dare]")
    assert clipfuse_command(capsys, *merge, pool("tiny-digits"), "-o", tmp_path / "one")[0] == 0
    words = ("add", tmp_path / "one", f"expert={weights / 'tiny-signs'}", "--out", tmp_path / "two")
    status, out, _ = clipfuse_command(capsys, *words)
    assert status == 0
    assert "opcm: tiny-signs after 1" in out
    clipfuse_command(capsys, *merge, pool("tiny-digits", "tiny-signs"), "-o", tmp_path / "whole")
    for file in ("model.safetensors", "state.safetensors", "clipfuse.json"):
        assert sha256(tmp_path / "two" / file) == sha256(tmp_path / "whole" / file)
    words = (
        "add",
        tmp_path / "two",
        f"expert={weights / 'tiny-signs'}",
        "name=again",
        "--out",
        tmp_path / "x",
        "--json",
    )
    status, out, _ = clipfuse_command(capsys, *words)
    assert json.loads(out)["recipe"]["arrivals"]["order"] == ["tiny-digits", "tiny-signs", "again"]


def test_evaluate_knows_full_models_and_writes_reports(tmp_path, capsys):
    base = Path(clipfuse.__file__).parent / "tiny/weights/base"
    expert = base.with_name("tiny-signs")
    words = ("evaluate", base, expert, TASKS, f"base={base}", "--limit", 40, "--out", tmp_path / "eval")
    status, out, _ = clipfuse_command(capsys, *words)
    assert status == 0
    assert "tiny-signs" in out
    assert [r["model_info"]["name"] for r in json.loads((tmp_path / "eval/report.json").read_text())] == [
        "base",
        "tiny-signs",
    ]


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["ls", "methods"], "ties_merging"),
        (["ls", "edits"], "dare"),
        (["ls", "finishes"], "lines"),
        (["ls", "modelpools"], "clip-vit-large-patch14_TA8"),
        (["ls", "tasks"], "tiny-signs"),
        (["ls", "taskpools"], "TALL20"),
        (["show", "method", "ties_merging"], "keep"),
        (["show", "method", "ties_merging", "--bibtex"], "@inproceedings"),
        (["show", "modelpool", "clip-vit-base-patch16_TA8"], "tanganke/clip-vit-base-patch16_sun397"),
        (["show", "model", "pkg://clipfuse/tiny/weights/tiny-signs"], "quick_gelu"),
        (["show", "task", "CARS"], "a photo of a {c}."),
        (["check", "method=ties_merging", *TINY], "3 passes"),
        (["--version"], clipfuse.__version__),
    ],
)
def test_what_prints_data_prints_it_also_as_json(words, key, capsys):
    status, out, _ = clipfuse_command(capsys, *words)
    assert status == 0
    assert key in out
    if "--bibtex" not in words and "--version" not in words:
        status, out, _ = clipfuse_command(capsys, *words, "--json")
        assert status == 0
        assert json.loads(out)


def test_fusionbench_words_run(tmp_path, capsys):
    words = ("method=ties_merging", "method.threshold=50", "fast_dev_run=true", "fabric.devices=1", *TINY)
    status, _, err = clipfuse_command(capsys, "run", *words, "--limit", 20, "--out", tmp_path / "run", "baselines=none")
    assert status == 0
    assert "threshold=50 is read as keep=0.5" in err
    assert json.loads((tmp_path / "run/merged/clipfuse.json").read_text())["method"]["keep"] == 0.5


BAD = {
    "unknown method": (["run", "method=tis_merging", *TINY], "did you mean 'ties_merging'"),
    "unknown modelpool": (["run", "method=magmax", "modelpool=tiny_TA9", TASKS], "did you mean 'tiny_TA8'"),
    "unknown taskpool": (["run", "method=magmax", POOL, "taskpool=TA9"], "did you mean 'TA8'"),
    "unknown task": (["run", "method=magmax", POOL, "taskpool={tasks: [tiny-digit]}"], "did you mean 'tiny-digits'"),
    "unknown setting": (["run", "method=ties_merging", "method.kep=0.1", *TINY], "did you mean 'keep'"),
    "unknown key": (["run", "method=magmax", *TINY, "selct=val"], "did you mean 'select'"),
    "add to what": (["add", "expert=x", "--out", "y"], "add: takes one merged folder"),
    "add nothing": (["add", ".", "--out", "y"], "expert: is required"),
    "add to nowhere": (["add", ".", "expert=x"], "--out: is required"),
    "unknown key of an addition": (["add", ".", "expert=x", "nam=y"], "did you mean 'name'"),
    "unknown key of a merge": (["merge", "method=magmax", POOL, "edit=[dare]"], "did you mean 'edits'"),
    "unknown edit": (["run", "method=magmax", "edits=[dar]", *TINY], "did you mean 'dare'"),
    "wrong type": (["run", "method=ties_merging", "method.keep=much", *TINY], "method.keep"),
    "per cent": (["run", "method=ties_merging", "method.keep=1.5", *TINY], "less than or equal to 1"),
    "one setting twice": (
        ["merge", "method=ties_merging", "method.keep=0.3", "method.threshold=20", POOL, "--out", "never"],
        "threshold and keep are one setting",
    ),
    "edit as a method": (["merge", "method=truncate", POOL, "--out", "never"], "write edits=[truncate]"),
    "finishes of a number": (["run", "method=magmax", "finishes=5", *TINY], "finishes"),
    "seed of a merge": (["merge", "method=magmax", POOL, "seed=hello", "--out", "never"], "seed"),
    "edits of a list": (["run", "method=magmax", "edits=dare", *TINY], "takes a list"),
    "edits on weights": (["run", "method=simple_average", "edits=[dare]", *TINY], "takes no edits"),
    "values without select": (["run", "method=magmax", "method.scaling_factor=1,2", *TINY], "select=val"),
    "one value to select": (["run", "method=magmax", "select=val", *TINY], "nothing to choose"),
    "values of another setting": (["run", "method=ties_merging", "method.keep=0.1,0.2", "select=val", *TINY], "scaling_factor takes a list"),
    "not a number": (["run", "method=magmax", "method.scaling_factor=nan", *TINY], "finite"),
    "no tasks": (["run", "method=magmax", POOL, "taskpool={tasks: []}"], "at least 1"),
    "a task twice": (["run", "method=magmax", POOL, "taskpool={tasks: [tiny-signs, TINY_signs]}"], "is in it twice"),
    "unknown option": (["run", "--bogus"], "No such option"),
    "option of a wrong type": (["run", "--limit", "abc"], "--limit"),
    "option out of range": (["run", "--batch-size", "0"], "--batch-size"),
    "unknown verb": (["mrge"], "mrge"),
    "nothing to list": (["ls", "foo"], "methods"),
    "two files": (["run", "a.yaml", "b.yaml"], "one FILE.yaml"),
    "missing file": (["run", "none.yaml", *TINY], "no such file"),
    "no method": (["run", *TINY], "method: is required"),
    "no taskpool": (["run", "method=magmax", POOL], "taskpool: is required"),
    "no out": (["merge", "method=magmax", POOL], "--out: is required"),
    "odd path": (["merge", "method=magmax", POOL, "modelpool.models.tiny-signs.path=no/sp äce (1)", "-o", "x"], "no/sp äce (1)"),
    "no models in a pool": (["check", "method=magmax", "modelpool={models: []}"], "no experts"),
    "missing model": (["merge", "method=magmax", "modelpool={models: {a: ./nowhere}}", "-o", "x"], "./nowhere: no such file"),
    "no experts": (["check", "method=magmax", "modelpool={models: {_pretrained_: 'pkg://clipfuse/tiny/weights/base'}}"], "no experts"),
    "no base": (["check", "method=magmax", "modelpool={models: {a: 'pkg://clipfuse/tiny/weights/base'}}"], "needs a base"),
    "unknown expert": (["check", "method=task_arithmetic", "method.weights={tiny-digit: 1.0}", *TINY], "did you mean 'tiny-digits'"),
    "device": (["run", "method=magmax", *TINY, "--device", "tpu"], "device: 'tpu'"),
    "dtype": (["check", "method=magmax", *TINY, "--dtype", "int8"], "dtype: 'int8'"),
    "limit of an evaluation": (["evaluate", "pkg://clipfuse/tiny/weights/base", TASKS, "limit=-3"], "evaluate.limit"),
    "key of an evaluation": (["evaluate", "pkg://clipfuse/tiny/weights/base", TASKS, "splt=val"], "did you mean 'split'"),
    "unknown split": (["evaluate", "pkg://clipfuse/tiny/weights/base", TASKS, "split=vall"], "did you mean 'val'"),
    "no models": (["evaluate", TASKS], "at least one model"),
    "a base of two": (["evaluate", "pkg://clipfuse/tiny/weights/tiny-signs/model.safetensors", TASKS], "no known base"),
    "show": (["show", "method", "ties_mergin"], "ties_merging"),
    "bibtex": (["show", "task", "mnist", "--bibtex"], "is for methods"),
    "nothing to fetch": (["fetch"], "takes modelpool="),
}  # fmt: skip


@pytest.mark.parametrize(("words", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_leaves_nothing(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = clipfuse_command(capsys, *words)
    assert status == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_outputs_that_are_there_are_not_touched(tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    words = ("merge", "method=magmax", POOL, "--out", folder)
    status, _, err = clipfuse_command(capsys, *words)
    assert (status, "is not empty" in err) == (2, True)
    status, _, err = clipfuse_command(capsys, *words, "--overwrite")
    assert (status, "thesis.tex" in err) == (2, True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.tex"]


def test_no_space_is_said_before_anything_is_written(tmp_path, capsys, monkeypatch):
    import shutil

    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    status, _, err = clipfuse_command(capsys, "merge", "method=magmax", POOL, "--out", tmp_path / "out")
    assert (status, "are needed" in err) == (2, True)
    assert not list(tmp_path.iterdir())


def test_nan_is_named(tmp_path, capsys, pool_yaml):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "models/signs/model.safetensors"
    tensors = load_file(path)
    tensors["vision_model.encoder.layers.1.mlp.fc2.weight"][3, 4] = float("nan")
    save_file(tensors, path)
    words = ("merge", "method=ties_merging", f"modelpool={pool_yaml}", "--out", tmp_path / "out")
    status, _, err = clipfuse_command(capsys, *words)
    assert status == 2
    assert "signs: encoder.layers.1.mlp.fc2.weight: holds NaN or Inf" in err
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_factors_are_kept_from_a_run_for_a_merge(tmp_path, capsys, monkeypatch):
    words = ("method=tsv_merging", "--keep-factors", "--out")
    monkeypatch.setattr("clipfuse.cache.cache_folder", lambda name: tmp_path / name)
    status, _, err = clipfuse_command(capsys, "merge", POOL, *words, tmp_path / "first")
    assert (status, "0 from the cache" in err) == (0, True)
    status, _, err = clipfuse_command(capsys, "run", *TINY, "--limit", 8, *words, tmp_path / "second")
    assert (status, "decompositions: 0 made" in err) == (0, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_nothing_and_status_130(tmp_path, number: signal.Signals):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "clipfuse", "run", "method=magmax", *TINY, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".run.*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip().splitlines() == ["clipfuse: interrupted; nothing was left half-written"]
    assert not list(tmp_path.iterdir())


def test_inputs_are_never_overwritten(tmp_path, capsys):
    expert = tmp_path / "expert"
    clipfuse_command(capsys, "merge", "method=magmax", POOL, "--out", expert)
    before = sha256(expert / "model.safetensors")
    words = ("merge", "method=magmax", POOL, f"modelpool.models.tiny-signs.path={expert}", "--overwrite")
    status, _, err = clipfuse_command(capsys, *words, "--out", expert)
    assert (status, "holds the input" in err) == (2, True)
    (expert / "notes.md").write_text("mine")
    status, _, err = clipfuse_command(capsys, "merge", "method=simple_average", POOL, "--out", expert, "--overwrite")
    assert (status, "'notes.md'" in err) == (2, True)
    assert sha256(expert / "model.safetensors") == before
    (expert / "notes.md").unlink()
    status, _, _ = clipfuse_command(capsys, "merge", "method=simple_average", POOL, "--out", expert, "--overwrite")
    assert status == 0
    assert sha256(expert / "model.safetensors") != before


def test_a_base_that_is_not_whole_is_refused(tmp_path, capsys):
    import shutil

    from safetensors.torch import load_file, save_file

    weights = Path(clipfuse.__file__).parent / "tiny/weights"
    for name in ("notext", "notok", "noprep", "patch16"):
        shutil.copytree(weights / "base", tmp_path / name)
    tensors = load_file(weights / "base/model.safetensors")
    kept = {key: value for key, value in tensors.items() if not key.startswith("text_model.")}
    save_file(kept, tmp_path / "notext/model.safetensors", {"format": "pt"})
    for path in (*(tmp_path / "notok").glob("tokenizer*"), *(tmp_path / "notok").glob("vocab*")):
        path.unlink()
    (tmp_path / "noprep/preprocessor_config.json").unlink()
    config = json.loads((weights / "base/config.json").read_text())
    config["vision_config"]["num_attention_heads"] = 2
    (tmp_path / "patch16/config.json").write_text(json.dumps(config))
    said = {
        "notext": "missing keys",
        "notok": "no tokenizer",
        "noprep": "preprocessor_config",
        "patch16": "does not belong",
    }
    for name, says in said.items():
        words = ("evaluate", weights / "tiny-signs", TASKS, f"base={tmp_path / name}", "--limit", 5)
        status, _, err = clipfuse_command(capsys, *words)
        assert (status, len(err.strip().splitlines())) == (2, 1), err
        assert says in err


def test_quickstart(capsys):
    status, out, err = clipfuse_command(capsys, "quickstart", "--limit", 40, "--json")
    assert status == 0, err
    records = json.loads(out)
    tasks = [task.name for task in SUITE]
    models = {role: {r["model"] for r in records if r["role"] == role} for role in ("base", "expert", "merged")}
    assert models["base"] == {"pre-trained"}
    assert models["expert"] == set(tasks)
    assert len(models["merged"]) >= 6
    for model in models["base"] | models["merged"]:
        mine = [r for r in records if r["model"] == model]
        assert [r["task"] for r in mine] == tasks
        assert all(r["normalised"] is not None and r["interval"][0] < r["interval"][1] for r in mine)
    assert all(r["model"] == r["task"] for r in records if r["role"] == "expert")


def test_the_suite_is_drawn_when_it_is_needed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CLIPFUSE_CACHE", str(tmp_path / "cache"))
    assert clipfuse_command(capsys, "check", "method=magmax", *TINY)[0] == 0
    assert clipfuse_command(capsys, "ls", "tasks")[0] == 0
    assert not list(tmp_path.rglob("*.png"))
    expert = Path(clipfuse.__file__).parent / "tiny/weights/tiny-digits"
    base = f"base={expert.with_name('base')}"
    words = ("evaluate", expert, "taskpool={tasks: [tiny-digits]}", base, "--limit", 5)
    assert clipfuse_command(capsys, *words)[0] == 0
    assert {path.parent.parent.parent.name for path in tmp_path.rglob("*.png")} == {"tiny-digits"}


def test_seed_zero_is_a_seed(tmp_path, capsys):
    words = ("check", "method=magmax", "seed=7", *TINY, "--seed", 0)
    assert clipfuse_command(capsys, *words)[0] == 0
    from clipfuse.cli.options import tree_of

    assert tree_of(["seed=7"], {"seed": 0})["seed"] == 0
    clipfuse_command(
        capsys,
        "merge",
        "method=task_arithmetic",
        "edits=[dare]",
        "seed=7",
        POOL,
        "--seed",
        0,
        "-o",
        tmp_path / "m",
    )
    assert json.loads((tmp_path / "m/clipfuse.json").read_text())["seed"] == 0


def test_a_task_of_ones_own(tmp_path, capsys):
    from PIL import Image

    for split in ("train", "test"):
        for number, name in enumerate(("red", "blue")):
            (tmp_path / "pics" / split / name).mkdir(parents=True)
            for i in range(20):
                colour = (200 + i, 0, 0) if number == 0 else (0, 0, 200 + i)
                Image.new("RGB", (40, 30), colour).save(tmp_path / "pics" / split / name / f"{i}.png")
    (tmp_path / "colours.yaml").write_text(
        "name: colours\nfolder: pics\ntemplates: ['a photo of something {c}.']\nclasses: ['red', 'blue']\n"
    )
    task = f"taskpool={tmp_path / 'colours.yaml'}"
    words = ("run", "method=magmax", "method.scaling_factor=0.3,0.6", "select=val", POOL, task)
    status, out, err = clipfuse_command(capsys, *words, "--out", tmp_path / "run")
    assert status == 0
    assert "colours" in out
    assert "4 of 40 train images stand in" in err


def test_a_sweep_reads_the_pool_once(monkeypatch, tmp_path, capsys):
    from clipfuse.pool import PoolView

    passes = []
    real = PoolView.map_raw

    def counted(self, *arguments):
        passes.extend([1] if self.progress else [])  # setting λ reads θ0 and Δ alone and shows no progress
        return real(self, *arguments)

    monkeypatch.setattr(PoolView, "map_raw", counted)
    words = ("run", "method=task_arithmetic", "method.scaling_factor=0.2,0.6", "select=val", *TINY, "baselines=none")
    assert clipfuse_command(capsys, *words, "--limit", 10, "--out", tmp_path / "run")[0] == 0
    assert len(passes) == 1
