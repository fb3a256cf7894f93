"""Publishing: what is prepared, what arrives on a hub, what comes back from there, and what is refused."""

import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from made_records import made_record
from safetensors.torch import load_file, save_file
from standin_hub import Client, StandInHub, serving, talking

import clipfuse
from clipfuse.checkpoints.card import TRANSDUCTIVE, Publication, model_card
from clipfuse.checkpoints.locate import local_path
from clipfuse.checkpoints.names import PROJECTION
from clipfuse.errors import CheckpointError, ClipfuseError, ConfigError, LocateError, ModelError, OutputError
from clipfuse.evaluate.record import read_records, write_records
from clipfuse.fusion.merged import read_recipe
from clipfuse.run.publish import prepare

TINY = local_path("pkg://clipfuse/tiny/weights")
LINES = {"name": "lines", "alpha": 0.5, "beta": 1.0}
SECRET = "my-secret-project"
"""A folder of the author's machine that nobody is to hear of."""

VERBS = """
import contextlib, io, os, sys
from clipfuse.cli import main as cli

def answer(words, token="right"):
    os.environ["HF_TOKEN"] = token
    sys.argv = ["clipfuse", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as left:
            return [left.code, out.getvalue(), err.getvalue()]
"""

READER = """
import hashlib, torch
from PIL import Image
from transformers import CLIPModel, CLIPVisionModel, pipeline
from clipfuse.checkpoints.locate import CLIP, locate
from clipfuse.heads import make_heads
from clipfuse.models.clip_base import open_base
from clipfuse.models.build import load_image_processor, quiet_transformers
from clipfuse.tasks import Task
import clipfuse

CLASSES, TEMPLATE = ["0", "1", "2", "7"], "a photo of the number {c}."

def digest(tensors):
    names = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items() if "_projection" not in name}
    found = hashlib.sha256()
    for name, tensor in sorted(names.items()):
        found.update(name.encode() + tensor.float().contiguous().numpy().tobytes())
    return found.hexdigest()

def answer(repo, full, image):
    ours = clipfuse.load(locate(repo).folder)
    with quiet_transformers():
        vision, info = CLIPVisionModel.from_pretrained(repo, output_loading_info=True)
    said = {"ours": digest(ours.tensors), "theirs": digest(vision.state_dict()), "missing": len(info["missing_keys"])}
    if not full:
        return said
    with quiet_transformers():
        _, whole = CLIPModel.from_pretrained(repo, output_loading_info=True)
        classify = pipeline("zero-shot-image-classification", model=repo, dtype=torch.float32)
    found = classify(image, candidate_labels=CLASSES, hypothesis_template=TEMPLATE.replace("{c}", "{}"))
    scores = {entry["label"]: entry["score"] for entry in found}
    base = open_base("lab/base")
    task = Task(name="t", classes=CLASSES, templates=[TEMPLATE], folder="t")
    pixels = load_image_processor(base.folder)(Image.open(image), return_tensors="pt")["pixel_values"]
    encoder = ours.encoder(base)
    logits = make_heads(base, [task])["t"].logits(encoder, encoder.features(pixels, None))[0]
    return said | {
        "lost": [len(whole["missing_keys"]), len(whole["unexpected_keys"])],
        "scores": [scores[c] for c in CLASSES],
        "own": logits.softmax(-1).tolist(),
    }
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("publish")


@pytest.fixture(scope="module")
def hub(home: Path) -> Iterator[StandInHub]:
    """A hub with the tiny base and an expert, both under one licence."""
    lab = home / "hub" / "models" / "lab"
    for name, source in {"base": "base", "signs": "tiny-signs"}.items():
        shutil.copytree(TINY / source, lab / name)
        (lab / name / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    with serving(home / "hub") as hub:
        yield hub


@pytest.fixture(scope="module")
def local(home: Path) -> Path:
    """An expert on the author's machine, under the same licence."""
    folder = home / SECRET / "digits"
    shutil.copytree(TINY / "tiny-digits", folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture(scope="module")
def author(hub: StandInHub, home: Path) -> Iterator[Client]:
    """The machine of somebody who publishes."""
    with talking(hub, home / "author", VERBS) as client:
        yield client


def ask(author: Client, *words: object, **of: str) -> tuple[int, str, str]:
    status, out, err = author.ask(words=list(map(str, words)), **of)
    return status, out, err


@pytest.fixture(scope="module")
def run(author: Client, home: Path, local: Path) -> Path:
    """A run over models of the hub and of the author's machine."""
    models = {"_pretrained_": "lab/base", "tiny-digits": str(local), "tiny-signs": "lab/signs"}
    pool = home / "pool.yaml"
    pool.write_text(yaml.safe_dump({"models": models}, sort_keys=False))
    words = ["method=ties_merging", f"modelpool={pool}", "taskpool={tasks: [tiny-digits, tiny-signs]}"]
    status, _, err = ask(author, "run", *words, "edits=[dare]", "--limit", 20, "--out", home / "run")
    assert status == 0, err
    return home / "run"


@pytest.fixture(scope="module")
def arrived(author: Client, run: Path, hub: StandInHub) -> dict[str, Any]:
    """What publishing the run said, what a dry run had said before, and what the hub was asked meanwhile."""
    status, told, err = ask(author, "publish", run, "lab/merged", "--dry-run", "--json")
    assert status == 0, err
    assert not [path for method, path in hub.requests if method in ("POST", "PUT")]
    assert not (hub.root / "models/lab/merged").exists()
    status, done, err = ask(author, "publish", run, "lab/merged", "--json", "-m", "First")
    assert status == 0, err
    return {"told": json.loads(told), "done": json.loads(done), "folder": hub.root / "models/lab/merged"}


@pytest.fixture(scope="module")
def full(author: Client, run: Path, hub: StandInHub) -> Path:
    """The same as a full CLIP."""
    status, _, err = ask(author, "publish", run, "lab/full", "--clip", "--private")
    assert status == 0, err
    return hub.root / "models/lab/full"


@pytest.fixture(scope="module")
def reader(hub: StandInHub, home: Path) -> Iterator[Client]:
    """The machine of somebody else."""
    with talking(hub, home / "reader", READER) as client:
        yield client


@pytest.fixture(scope="module")
def image(run: Path, home: Path) -> Path:
    return next((home / "author").rglob("tiny-digits/test/*/*.png"))


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_a_dry_run_lists_is_what_arrives_in_one_commit(arrived, hub):
    names = {"README.md", "clipfuse.json", "config.json", "model.safetensors", "records.jsonl"}
    assert sizes(arrived["folder"]) == arrived["told"]["files"] == arrived["done"]["files"]
    assert set(arrived["told"]["files"]) == names
    assert hub.commits.count(("lab/merged", "First")) == 1
    assert arrived["done"]["commit"] == hub.commit("models", "lab/merged")
    assert arrived["done"]["url"] == f"{hub.url}/lab/merged"

    assert arrived["told"]["front_matter"] in (arrived["folder"] / "README.md").read_text()


def test_weights_come_back_as_they_were(arrived, run, reader, image):
    assert sha256(arrived["folder"] / "model.safetensors") == sha256(run / "merged" / "model.safetensors")
    said = reader.ask(repo="lab/merged", full=False, image=str(image))
    assert said["ours"] == said["theirs"]
    assert said["missing"] == 0


def test_the_full_clip_comes_back_and_its_pipeline_gives_clipfuses_own_scores(full, run, hub, reader, image):
    assert "lab/full" in hub.hidden
    mine = {name: tensor for name, tensor in load_file(run / "merged" / "model.safetensors").items()}
    stored = load_file(full / "model.safetensors")
    base = load_file(TINY / "base" / "model.safetensors")
    assert stored.keys() == base.keys()
    assert all(torch.equal(tensor, mine.get(name, base[name])) for name, tensor in stored.items())
    said = reader.ask(repo="lab/full", full=True, image=str(image))
    assert said["ours"] == said["theirs"]
    assert said["lost"] == [0, 0]
    assert said["missing"] == 0
    assert said["scores"] == pytest.approx(said["own"], abs=1e-5)
    assert max(said["own"]) - min(said["own"]) > 0.1


def test_the_hub_reads_from_the_card_what_was_measured(arrived):
    data = ModelCard((arrived["folder"] / "README.md").read_text()).data
    assert data.base_model == ["lab/base", "lab/signs"]
    assert data["base_model_relation"] == "merge"
    assert (data.license, data.library_name, data.datasets) == ("mit", "transformers", None)
    records = read_records(arrived["folder"] / "records.jsonl")
    assert [record.role for record in records] == ["merged", "merged"]
    found = {(r.dataset_name, r.metric_value, r.metric_args["images"], r.dataset_split) for r in data.eval_results}
    assert found == {(record.task, record.accuracy, record.n, "test") for record in records}
    assert {r.dataset_args["images_and_labels_sha256"] for r in data.eval_results} == {r.fingerprint for r in records}


def test_the_cards_own_command_measures_the_same_again(arrived, author):
    match = re.search(r"^    clipfuse (evaluate lab/merged .*)$", (arrived["folder"] / "README.md").read_text(), re.M)
    assert match
    status, out, err = ask(author, *shlex.split(match[1]), "--json", "reuse=false")
    assert status == 0, err
    records = read_records(arrived["folder"] / "records.jsonl")
    again = [(r["task"], r["fingerprint"], r["n"], r["correct"], r["loss"]) for r in json.loads(out)]
    assert again == [(r.task, r.fingerprint, r.n, r.correct, r.loss) for r in records]


def test_nothing_tells_of_the_authors_machine(arrived, full, run, home, local):
    assert SECRET in (run / "merged" / "clipfuse.json").read_text()
    for path in [*arrived["folder"].iterdir(), *full.iterdir()]:
        raw = path.read_bytes()
        assert SECRET.encode() not in raw, path
        assert str(home).encode() not in raw, path
        assert os.uname().nodename.encode() not in raw or path.suffix == ".safetensors", path
    member = json.loads((full / "clipfuse.json").read_text())["pool"][1]
    assert member == {
        "name": "tiny-digits",
        "path": None,
        "revision": None,
        "files": {"model.safetensors": sha256(local / "model.safetensors")},
        "local": "digits",
    }


def test_every_hash_is_that_of_the_file(arrived, full, hub, local):
    for folder in (arrived["folder"], full):
        card = (folder / "README.md").read_text()
        for path in (hub.root / "models/lab/base", local, hub.root / "models/lab/signs", folder):
            assert f"`{sha256(path / 'model.safetensors')}`" in card
    recipe = read_recipe(arrived["folder"])
    assert recipe
    commits = [hub.commit("models", f"lab/{name}") for name in ("base", "signs")]
    assert [member["revision"] for member in recipe["pool"]] == [commits[0], None, commits[1]]
    assert all(record.recipe == recipe for record in read_records(arrived["folder"] / "records.jsonl"))


def test_the_same_again_is_no_new_commit_and_something_else_needs_overwrite(author, arrived, run, hub):
    before = list(hub.commits)
    (arrived["folder"] / "notes.txt").write_text("mine")
    status, _, err = ask(author, "publish", run, "lab/merged")
    assert (status, err) == (
        2,
        "clipfuse: lab/merged: holds another 'notes.txt' already; choose another name or pass --overwrite\n",
    )
    (arrived["folder"] / "notes.txt").unlink()
    status, out, _ = ask(author, "publish", run, "lab/merged")
    assert (status, hub.commits) == (0, before)
    assert f"commit {hub.commit('models', 'lab/merged')}" in out


def test_overwriting_takes_away_what_publish_left_before_and_nothing_else(author, run, hub):
    folder = hub.root / "models/lab/twice"
    assert ask(author, "publish", run, "lab/twice", "--clip")[0] == 0
    (folder / "LICENSE").write_text("mine")
    assert ask(author, "publish", run, "lab/twice")[0] == 2
    status, _, err = ask(author, "publish", run, "lab/twice", "--overwrite")
    assert status == 0, err
    names = {"LICENSE", "README.md", "clipfuse.json", "config.json", "model.safetensors", "records.jsonl"}
    assert set(sizes(folder)) == names


@pytest.mark.parametrize(
    ("words", "token", "says"),
    [
        (["lab/new"], "", "publish: there is no token of the hub; log in by `hf auth login`, or set HF_TOKEN"),
        (["lab/new"], "weak", "lab/new: the hub does not let this token write there (403)"),
        (["lab/base"], "right", "lab/base: holds another 'README.md' already; choose another name or pass --overwrite"),
        (
            ["lab/base", "--private", "--overwrite"],
            "right",
            "lab/base: is there and is public; make it private on its page, or go without --private",
        ),
        (["lab/new", "--out", "x"], "right", "--out: keeps what --dry-run prepares, and goes with it"),
    ],
)
def test_what_the_hub_or_its_client_refuses_is_one_line(author, run, hub, words, token, says):
    hub.readers = {"weak"}
    assert ask(author, "publish", run, *words, token=token) == (2, "", f"clipfuse: {says}\n")
    assert not (hub.root / "models/lab/new").exists()


# what needs no hub


def merge(out: Path, models: dict[str, str] | None = None) -> Path:
    models = models or {"_pretrained_": "base", "tiny-signs": "tiny-signs", "tiny-digits": "tiny-digits"}
    paths = {name: f"pkg://clipfuse/tiny/weights/{path}" if "/" not in path else path for name, path in models.items()}
    pool = clipfuse.HuggingFaceClipVisionPool.from_tree({"models": paths})
    clipfuse.merge(pool, "ties_merging", edits=["dare"], finishes=[LINES], seed=7, out=out)
    return out


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    return merge(tmp_path / "merged")


def test_the_same_folder_gives_the_same_bytes(tmp_path, merged):
    first, second = (prepare(merged, "lab/a", tmp_path / name, clip=True) for name in ("x", "y"))
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


def test_the_recipe_in_the_card_merges_the_same_bits_again(tmp_path, merged, monkeypatch, capsys):
    from clipfuse.cli.main import main

    card = (prepare(merged, "lab/a", tmp_path / "out") / "README.md").read_text()
    match = re.search(r"```yaml\n(.*?)```", card, re.S)
    assert match
    (tmp_path / "recipe.yaml").write_text(match[1])
    words = ["clipfuse", "merge", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "again")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0, capsys.readouterr().err
    assert sha256(tmp_path / "again" / "model.safetensors") == sha256(merged / "model.safetensors")


def test_a_card_without_results_says_no_more_than_the_recipe(merged):
    text = (merged / "README.md").read_text()
    recipe = read_recipe(merged)
    assert recipe
    assert text == model_card(recipe)
    assert ModelCard(text).data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["merge", "clipfuse"],
    }
    assert "## Results" not in text
    assert "none, weights only" in text
    seen = {**recipe, "uses": ["test_images"]}
    assert TRANSDUCTIVE in model_card(seen)
    assert TRANSDUCTIVE not in model_card({**recipe, "uses": ["val_images"]})


@pytest.mark.parametrize(
    ("licences", "found"),
    [
        ({"a": "mit", "b": "mit"}, "mit"),
        ({"a": "mit", "b": "apache-2.0"}, None),
        ({"a": "mit", "b": None}, None),
        ({"a": None, "b": None}, None),
        ({"a": "other", "b": "other"}, None),
    ],
)
def test_a_licence_is_only_given_if_all_have_it(merged, licences, found):
    recipe = read_recipe(merged)
    assert recipe
    text = model_card(recipe, Publication("lab/a", licences=licences))
    assert ModelCard(text).data.license == found
    assert ("ask their authors" in text) == (found is None)


def test_a_local_base_is_named_and_asked_for(tmp_path):
    for name, source in {"clip": "base", "a": "tiny-signs"}.items():
        shutil.copytree(TINY / source, tmp_path / SECRET / name)
    models = {"_pretrained_": f"{tmp_path}/{SECRET}/clip", "a": f"{tmp_path}/{SECRET}/a"}
    merged = spoilt(merge(tmp_path / "merged", models), warnings=[f"a: {models['a']}/model.safetensors: is odd"])
    text = (prepare(merged, "lab/a", tmp_path / "out") / "README.md").read_text()
    assert "- a: a/model.safetensors: is odd\n" in text
    assert "clipfuse evaluate lab/a taskpool=TA8 base=./clip\n" in text
    assert "base_model" not in text
    assert SECRET not in text
    again = prepare(tmp_path / "out", "lab/b", tmp_path / "more")
    assert read_recipe(again) == read_recipe(tmp_path / "out")


def test_what_was_published_can_be_published_again(tmp_path, merged):
    first = prepare(merged, "lab/a", tmp_path / "first", clip=True)
    again = prepare(first, "lab/a", tmp_path / "again")
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}


def test_a_projection_that_was_merged_is_told_and_goes_into_the_full_clip(tmp_path):
    own = torch.full((128, 128), 0.25)
    for name in ("a", "b"):
        shutil.copytree(TINY / "tiny-signs", tmp_path / name)
        weights = load_file(TINY / "tiny-signs" / "model.safetensors")
        save_file(weights | {PROJECTION: own}, tmp_path / name / "model.safetensors", {"format": "pt"})
    merged = merge(tmp_path / "m", {"_pretrained_": "base", **{name: str(tmp_path / name) for name in ("a", "b")}})
    for clip in (False, True):
        out = prepare(merged, "lab/a", tmp_path / f"out{clip}", clip=clip)
        stored = load_file(out / "model.safetensors")[PROJECTION]
        assert torch.equal(stored, load_file(merged / "model.safetensors")[PROJECTION])
        assert "The visual projection was merged, too" in (out / "README.md").read_text()


def spoilt(folder: Path, **changes: Any) -> Path:
    recipe = json.loads((folder / "clipfuse.json").read_text())
    (folder / "clipfuse.json").write_text(json.dumps(recipe | changes))
    return folder


@pytest.mark.parametrize("repo", ["name", "a/b/c", "la b/x", "lab/", "lab/x@main", "lab/--"])
def test_a_malformed_repository_is_refused(merged, tmp_path, repo):
    with pytest.raises(ConfigError, match="is no repository of the hub; it has the form owner/name"):
        prepare(merged, repo, tmp_path / "out")


def test_what_clipfuse_did_not_merge_is_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"tiny-signs: holds no clipfuse.json; publish takes what clipfuse merged"
    ):
        prepare(TINY / "tiny-signs", "lab/a", tmp_path / "out")
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        prepare("nowhere", "lab/a", tmp_path / "out")


def test_another_kind_than_weights_is_refused(merged, tmp_path):
    with pytest.raises(ClipfuseError, match="kind 'routed'"):
        prepare(spoilt(merged, kind="routed"), "lab/a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_records_of_another_merge_or_other_weights_are_refused(merged, tmp_path):
    recipe = read_recipe(merged)
    assert recipe
    path = tmp_path / "results" / "records.jsonl"
    path.parent.mkdir()
    other = {**recipe, "method": {**recipe["method"], "keep": 0.9}}
    write_records(path, [made_record("dtd", 1, 2, other)])
    with pytest.raises(
        ConfigError, match=r"records.jsonl: not of .*clipfuse.json but of other merges; other are: method$"
    ):
        prepare(merged, "lab/a", tmp_path / "out", records=path.parent)
    write_records(path, [made_record("dtd", 1, 2, None, role="other")])
    with pytest.raises(ConfigError, match=r"but of no merged model$"):
        prepare(merged, "lab/a", tmp_path / "out", records=path.parent)
    source = {"path": str(merged), "revision": None, "files": {"model.safetensors": "0" * 64}}
    write_records(path, [made_record("dtd", 1, 2, recipe, source=source)])
    with pytest.raises(ConfigError, match=r"is of other weights than .*model.safetensors \(sha256 000000000000…\)"):
        prepare(merged, "lab/a", tmp_path / "out", records=path)
    source["files"]["model.safetensors"] = sha256(merged / "model.safetensors")
    base = f"{SECRET}/clip"
    mine = made_record("dtd", 1, 2, recipe, source=source, base=f"/{base}", model=str(merged))
    write_records(path, [made_record("dtd", 2, 2, other, model="x"), mine])
    out = prepare(merged, "lab/a", tmp_path / "out", records=path)
    assert [record.correct for record in read_records(out / "records.jsonl")] == [1]
    text = (out / "records.jsonl").read_text()
    assert SECRET not in text
    assert str(tmp_path) not in text
    assert ModelCard((out / "README.md").read_text()).data.datasets == ["lab/dtd"]


def test_a_model_that_is_gone_or_has_changed_is_refused_by_name(tmp_path):
    folder = tmp_path / "signs"
    shutil.copytree(TINY / "tiny-signs", folder)
    merged = merge(tmp_path / "merged", {"_pretrained_": "base", "signs": str(folder)})
    weights = folder / "model.safetensors"
    later = (merged / "clipfuse.json").stat().st_mtime + 5
    os.utime(weights, (later, later))
    with pytest.raises(LocateError, match=r"signs/model.safetensors: has changed since it was merged, .*merge again$"):
        prepare(merged, "lab/a", tmp_path / "out")
    weights.unlink()
    with pytest.raises(LocateError, match=r"signs/model.safetensors: is gone; the card needs the sha256 of signs"):
        prepare(merged, "lab/a", tmp_path / "out")


def test_a_hash_that_records_know_needs_no_file(tmp_path):
    folder = tmp_path / "signs"
    shutil.copytree(TINY / "tiny-signs", folder)
    merged = merge(tmp_path / "merged", {"_pretrained_": "base", "signs": str(folder)})
    recipe = read_recipe(merged)
    assert recipe
    pool = [{**m, "files": {n: h or "ab" * 32 for n, h in m["files"].items()}} for m in recipe["pool"]]
    write_records(tmp_path / "records.jsonl", [made_record("dtd", 1, 2, {**recipe, "pool": pool})])
    shutil.rmtree(folder)
    text = (prepare(merged, "lab/a", tmp_path / "out", records=tmp_path / "records.jsonl") / "README.md").read_text()
    assert f"`{'ab' * 32}`" in text


def test_models_in_memory_cannot_be_checked(tmp_path):
    pool = clipfuse.HuggingFaceClipVisionPool.from_yaml("tiny_TA8")
    models = {"_pretrained_": pool.load_pretrained_model(), "a": pool.load_model("tiny-signs")}
    clipfuse.merge(models, "task_arithmetic", out=tmp_path / "merged")
    with pytest.raises(OutputError, match="^_pretrained_: was in memory when it was merged, and nobody could check it"):
        prepare(tmp_path / "merged", "lab/a", tmp_path / "out")


def test_a_full_clip_needs_a_base(tmp_path):
    pool = clipfuse.HuggingFaceClipVisionPool.from_tree(
        {"models": {name: f"pkg://clipfuse/tiny/weights/{name}" for name in ("tiny-signs", "tiny-digits")}}
    )
    clipfuse.merge(pool, "simple_average", out=tmp_path / "merged")
    with pytest.raises(ModelError, match="merged: no known base for"):
        prepare(tmp_path / "merged", "lab/a", tmp_path / "out", clip=True)
    assert not (tmp_path / "out").exists()


def test_the_output_is_never_the_input(merged):
    with pytest.raises(OutputError, match="holds the input model.safetensors"):
        prepare(merged, "lab/a", merged, overwrite=True)


def test_what_a_continual_merge_goes_on_from_is_published_too(tmp_path):
    pool = clipfuse.HuggingFaceClipVisionPool.from_yaml("tiny_TA8")
    clipfuse.merge(pool, "continual_average", out=tmp_path / "merged")
    out = prepare(tmp_path / "merged", "lab/a", tmp_path / "out")
    assert sha256(out / "state.safetensors") == sha256(tmp_path / "merged" / "state.safetensors")
    assert f"`{sha256(out / 'state.safetensors')}`" in (out / "README.md").read_text()
