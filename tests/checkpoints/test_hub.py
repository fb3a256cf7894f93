"""Models and data sets on a hub: what is downloaded, what works offline, and what is said when it does not work."""

import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from standin_hub import Fault, StandInHub, cli, run, serving, talking

import clipfuse
from clipfuse.checkpoints.locate import local_path

TINY = local_path("pkg://clipfuse/tiny/weights")
NEEDED = {
    "lab/base/config.json",
    "lab/base/model.safetensors",
    "lab/digits/config.json",
    "lab/digits/model.safetensors.index.json",
    "lab/digits/model-00001-of-00002.safetensors",
    "lab/digits/model-00002-of-00002.safetensors",
    "lab/signs/config.json",
    "lab/signs/model.safetensors",
}
"""What a merge of the pool reads; every repository holds more."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny suite's base and two experts as repositories, one sharded, all with files that no merge needs."""
    root = tmp_path_factory.mktemp("hub")
    lab = root / "models" / "lab"
    shutil.copytree(TINY / "base", lab / "base")
    shutil.copytree(TINY / "tiny-signs", lab / "signs")
    (lab / "digits").mkdir()
    shutil.copy(TINY / "tiny-digits" / "config.json", lab / "digits")
    write_shards(TINY / "tiny-digits" / "model.safetensors", lab / "digits")
    for repo in lab.iterdir():
        for name in ("README.md", "pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "training_args.bin"):
            (repo / name).write_bytes(b"not needed")
    return root


def write_shards(source: Path, folder: Path) -> None:
    tensors = load_file(source)
    names = sorted(tensors)
    parts = {f"model-{i + 1:05}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


MODELS = {"_pretrained_": "base", "tiny-digits": "tiny-digits", "tiny-signs": "tiny-signs"}


@pytest.fixture
def hub(root: Path) -> Iterator[StandInHub]:
    with serving(root) as hub:
        yield hub


@pytest.fixture
def pool_file(tmp_path: Path) -> Path:
    models = {"_pretrained_": "lab/base", "tiny-digits": "lab/digits", "tiny-signs": "lab/signs"}
    path = tmp_path / "pool.yaml"
    path.write_text(yaml.safe_dump({"type": "huggingface_clip_vision", "models": models}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The merge of the same pool from local folders."""
    out = tmp_path_factory.mktemp("local") / "merged"
    models = {name: str(TINY / folder) for name, folder in MODELS.items()}
    clipfuse.merge(clipfuse.HuggingFaceClipVisionPool.from_tree({"models": models}), "task_arithmetic", out=out)
    return (out / "model.safetensors").read_bytes()


def merge_words(pool_file: Path, out: Path) -> list[str]:
    return ["merge", "method=task_arithmetic", f"modelpool={pool_file}", "--out", str(out)]


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line of a run that failed as a user's mistake does."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_merges_from_the_hub_and_then_offline(hub: StandInHub, pool_file: Path, merged: bytes, tmp_path: Path):
    first = cli(hub, tmp_path, *merge_words(pool_file, tmp_path / "first"))
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == merged
    assert sorted(hub.downloads()) == sorted(NEEDED)

    members = {member["name"]: member for member in json.loads((tmp_path / "first/clipfuse.json").read_text())["pool"]}
    weights = (hub.root / "models/lab/signs/model.safetensors").read_bytes()
    assert members["tiny-signs"]["path"] == "lab/signs"
    assert members["tiny-signs"]["revision"] == hub.commit("models", "lab/signs")
    assert members["tiny-signs"]["files"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}

    hub.requests.clear()
    second = cli(hub, tmp_path, *merge_words(pool_file, tmp_path / "second"), HF_HUB_OFFLINE="1")
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "second" / "model.safetensors").read_bytes() == merged
    assert (tmp_path / "second" / "clipfuse.json").read_text() == (tmp_path / "first" / "clipfuse.json").read_text()
    assert not hub.requests


def test_offline_with_a_cold_cache(hub: StandInHub, pool_file: Path, tmp_path: Path):
    line = one_line(cli(hub, tmp_path, *merge_words(pool_file, tmp_path / "out"), HF_HUB_OFFLINE="1"))
    for part in ("config.json", "lab/base", "lab/digits", "lab/signs", "clipfuse fetch modelpool="):
        assert part in line
    assert not (tmp_path / "out").exists()
    assert not hub.requests


def test_dry_run_downloads_nothing(hub: StandInHub, pool_file: Path, tmp_path: Path):
    done = cli(hub, tmp_path, "fetch", f"modelpool={pool_file}", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    sizes = {want["name"]: want["size"] for want in json.loads(done.stdout)}
    signs = hub.root / "models/lab/signs"
    assert sizes["tiny-signs"] == sum((signs / name).stat().st_size for name in ("config.json", "model.safetensors"))
    assert all(want["missing"] == want["size"] > 0 for want in json.loads(done.stdout))
    assert not hub.downloads()


def test_fetch_goes_on_where_it_was_stopped(hub: StandInHub, pool_file: Path, tmp_path: Path):
    shard = "digits/model-00002-of-00002.safetensors"
    hub.faults = [Fault("base/model.safetensors", cut=1000), Fault(shard, status=503)]
    line = cli(hub, tmp_path, "fetch", f"modelpool={pool_file}")
    assert line.returncode == 2, line.stderr
    assert line.stderr.splitlines()[-1] == (
        "clipfuse: lab/digits: the hub answers with an error (503) (run the same command again to go on)"
    )
    assert hub.downloads().count("lab/base/model.safetensors") == 2, "what broke off was asked for again"
    assert not any("signs" in file for file in hub.downloads())

    hub.requests.clear()
    done = cli(hub, tmp_path, "fetch", f"modelpool={pool_file}")
    assert done.returncode == 0, done.stderr
    assert sorted(hub.downloads()) == [f"lab/{shard}", "lab/signs/config.json", "lab/signs/model.safetensors"]
    for file in ("base/model.safetensors", shard, "signs/model.safetensors"):
        copies = list((tmp_path / "hub").glob(f"models--lab--*/snapshots/*/{Path(file).name}"))
        assert (hub.root / "models/lab" / file).read_bytes() in [copy.read_bytes() for copy in copies]


LOCATE = """
import json, sys
from clipfuse.checkpoints.locate import locate
from clipfuse.errors import LocateError

def attempt(ref):
    try:
        at = locate(ref)
        return [at.revision, at.folder.name]
    except LocateError as error:
        return str(error)

print(json.dumps([attempt(ref) for ref in sys.argv[1:]]))
"""


def test_revisions_and_refusals(hub: StandInHub, tmp_path: Path):
    commit = hub.commit("models", "lab/signs")
    for name in ("gated", "broken"):
        hub.faults.append(
            Fault(f"/lab/{name}", 403 if name == "gated" else 503, "GatedRepo" if name == "gated" else None)
        )
    said = {
        f"lab/signs@{commit}": [commit, commit],
        "lab/signs@main": [commit, commit],
        "lab/signs@v9": "lab/signs@v9: the repository has no such revision",
        "lab/nothing": "lab/nothing: no such folder here and no such model on the hub "
        "(or it is private and HF_TOKEN is not set)",
        "lab/gated": "lab/gated: is gated; ask for access on its page and set HF_TOKEN",
        "lab/broken": "lab/broken: the hub answers with an error (503) "
        "and config.json, model.safetensors are not in the cache",
        "a//b": "a//b: no such file or folder; a hub id has the form org/name or org/name@revision",
        "lab/name-.-": "lab/name-.-: is neither a path here nor a hub id (org/name or org/name@revision)",
        "lab/text": "lab/text: the hub has no config.json in this repository; it is not a transformers model",
    }
    (hub.root / "models/lab/text").mkdir(exist_ok=True)
    (hub.root / "models/lab/text/README.md").write_text("words")
    done = run(hub, tmp_path, "-c", LOCATE, *said)
    assert done.returncode == 0, done.stderr
    assert dict(zip(said, json.loads(done.stdout), strict=True)) == said

    # A commit does not change: no question to the hub. A branch that was seen is found again while the hub is down.
    hub.requests.clear()
    hub.faults = [Fault("/revision/main", status=503, times=9)]
    again = run(hub, tmp_path, "-c", LOCATE, f"lab/signs@{commit}", "lab/signs@main")
    assert json.loads(again.stdout) == [[commit, commit], [commit, commit]]
    assert [path for _, path in hub.requests] == ["/api/models/lab/signs/revision/main"]


ANSWER = """
import hashlib
from clipfuse.checkpoints.locate import locate
from clipfuse.errors import ClipfuseError

def answer(ref):
    try:
        at = locate(ref)
    except ClipfuseError as error:
        return {"error": str(error)}
    return {"sha256": hashlib.sha256((at.folder / "model.safetensors").read_bytes()).hexdigest()}
"""

WEIGHTS = "model.safetensors"
FAULTS = {
    "429": (Fault(WEIGHTS, status=429, retry_after=0), None),
    "slow": (Fault(WEIGHTS, delay=0.2, trickle=0.02), None),
    "stalled": (Fault(WEIGHTS, delay=1.5), None),
    "cut": (Fault(WEIGHTS, cut=1000), None),
    "wrong": (Fault(WEIGHTS, wrong=True), None),
    "wrong config": (Fault("config.json", wrong=True), None),
    "429 that lasts": (
        Fault("/{repo}", status=429, retry_after=0, times=99),
        "the hub answers with an error (429) and",
    ),
    "500": (Fault(WEIGHTS, status=500, times=99), "the hub answers with an error (500)"),
    "short": (Fault(WEIGHTS, short=7, times=99), "Consistency check failed: file should be of size"),
    "wrong for good": (Fault(WEIGHTS, wrong=True, times=99), "model.safetensors arrived twice with other bytes"),
}
"""What the hub does, and the error, if the client cannot get over it."""


def test_faults_end_in_the_right_bytes_or_one_line(hub: StandInHub, tmp_path: Path):
    right = hashlib.sha256((TINY / "tiny-signs" / WEIGHTS).read_bytes()).hexdigest()
    with talking(hub, tmp_path, ANSWER, HF_HUB_DOWNLOAD_TIMEOUT="1") as client:
        for number, (name, (fault, words)) in enumerate(FAULTS.items()):
            repo = f"faults/{number}"
            shutil.copytree(TINY / "tiny-signs", hub.root / "models" / repo)
            hub.faults = [replace(fault, ending=fault.ending.format(repo=repo))]
            answer = client.ask(ref=repo)
            assert hub.faults[0].times < fault.times, f"{name} was met"
            if words is None:
                assert answer == {"sha256": right}, name
                continue
            assert answer["error"].startswith(f"{repo}: {words}"), name
            assert "\n" not in answer["error"]
            whole = tmp_path.glob(f"hub/models--{repo.replace('/', '--')}/blobs/*")
            assert not [blob for blob in whole if len(blob.name) == 64], (
                f"{name}: weights that are not right are not kept"
            )
            hub.faults = []
            assert client.ask(ref=repo) == {"sha256": right}, f"after {name}"

        hub.tags = {"v1"}
        old = hub.commit("models", "faults/0")
        assert client.ask(ref="faults/0@v1") == {"sha256": right}
        hub.tags = set()
        (hub.root / "models/faults/0/README.md").write_text("A new commit.")
        hub.requests.clear()
        assert client.ask(ref="faults/0@v1") == {"error": "faults/0@v1: the repository has no such revision"}
        assert client.ask(ref=f"faults/0@{old}") == {"sha256": right}, "a commit that is here is not asked for"
        assert hub.requests == [("GET", "/api/models/faults/0/revision/v1")]


OPEN_SPLIT = """
import hashlib, json, sys
from pathlib import Path
from clipfuse.data import open_split
from clipfuse.tasks.task import read_task

split = open_split(read_task(Path(sys.argv[1])), "test")
print(json.dumps([split.labels, [hashlib.sha256(split.read(i)).hexdigest() for i in range(len(split))]]))
"""


def test_a_data_set_of_the_hub(hub: StandInHub, tmp_path: Path):
    labels, images = [2, 0, 1, 1], [png(colour) for colour in ("red", "green", "blue", "white")]
    write_data_set(hub.root / "datasets/lab/colours", labels, images)
    task = tmp_path / "colours.yaml"
    tree = {"name": "colours", "classes": ["a", "b", "c"], "templates": ["a {c}."], "hub_dataset": "lab/colours"}
    task.write_text(yaml.safe_dump(tree | {"image_column": "img", "label_column": "fine_label"}))
    expected = [labels, [hashlib.sha256(image).hexdigest() for image in images]]

    online = run(hub, tmp_path, "-c", OPEN_SPLIT, str(task))
    assert online.returncode == 0, online.stderr
    assert json.loads(online.stdout) == expected
    offline = run(hub, tmp_path, "-c", OPEN_SPLIT, str(task), HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert json.loads(offline.stdout) == expected


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 3), colour).save(file, "PNG")
    return file.getvalue()


def write_data_set(folder: Path, labels: list[int], images: list[bytes]) -> None:
    """A data set of parquet files as most of the hub's are, encoded images in a struct; train is test backwards."""
    (folder / "data").mkdir(parents=True)
    features = {"img": {"_type": "Image"}, "fine_label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for split, step in (("train", -1), ("test", 1)):
        cells = [{"bytes": image, "path": None} for image in images[::step]]
        table = pa.table({"img": pa.array(cells, struct), "fine_label": labels[::step]})
        file = folder / "data" / f"{split}-00000-of-00001.parquet"
        pq.write_table(table.replace_schema_metadata(described), file)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Colours\n")
