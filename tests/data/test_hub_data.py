"""Data sets of the hub: right bytes or one line, whatever the hub does; and nothing wrong that stays."""

import hashlib
import io
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from standin_hub import Client, Fault, StandInHub, cli, run, serving, talking

CLASSES = ["stop", "yield", "no entry"]
ROWS = {"train": 9, "test": 5}
SHARDS = {"train": 3, "test": 2}

ANSWER = """
import hashlib, logging
from clipfuse.data.hub_data import open_hub
from clipfuse.errors import ClipfuseError
from clipfuse.run.fetch import task_want
from clipfuse.tasks import Task

said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("clipfuse").addHandler(handler)

def answer(want=False, split="test", **tree):
    said.clear()
    task = Task(name="signs", templates=["a {c}."], **tree)
    try:
        if want:
            found = task_want(task)
            return {"size": found.size, "missing": found.missing, "commit": found.commit}
        table = open_hub(task, split)
        images = [hashlib.sha256(table.read(i)).hexdigest() for i in range(len(table.labels))]
        return {"labels": table.labels, "images": images, "origin": table.origin, "said": list(said)}
    except ClipfuseError as error:
        return {"error": str(error), "kind": type(error).__name__}
"""


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((16, 16), 10 + seed).save(file, "PNG")
    return file.getvalue()


PICTURES = {split: [picture(i) for i in range(count)] for split, count in ROWS.items()}
LABELS = {split: [i % 3 for i in range(count)] for split, count in ROWS.items()}


def write_repository(folder: Path, configs: tuple[str, ...] = ("default",)) -> None:
    """A data set as `push_to_hub` leaves it: several parquet shards a split, and a card that describes them."""
    described = [
        {
            "config_name": config,
            "features": [
                {"name": "image", "dtype": "image"},
                {"name": "label", "dtype": {"class_label": {"names": {str(i): c for i, c in enumerate(CLASSES)}}}},
            ],
            "splits": [{"name": split, "num_examples": count} for split, count in ROWS.items()],
        }
        for config in configs
    ]
    where = {config: "data" if config == "default" else config for config in configs}
    files = [
        {"config_name": c, "data_files": [{"split": split, "path": f"{where[c]}/{split}-*"} for split in ROWS]}
        for c in configs
    ]
    for config in configs:
        (folder / where[config]).mkdir(parents=True)
        for split, count in SHARDS.items():
            for i in range(count):
                cells = [{"bytes": raw, "path": f"{n}.png"} for n, raw in enumerate(PICTURES[split])][i::count]
                table = pa.table({"image": cells, "label": LABELS[split][i::count]})
                pq.write_table(table, folder / where[config] / f"{split}-{i:05}-of-{count:05}.parquet")
    card = yaml.safe_dump({"license": "mit", "dataset_info": described, "configs": files})
    (folder / "README.md").write_text(f"---\n{card}---\n# Signs\n")


def in_order(found: list[Any], split: str) -> list[Any]:
    """Rows as the shards have them."""
    return [row for i in range(SHARDS[split]) for row in found[i :: SHARDS[split]]]


RIGHT = {
    "labels": in_order(LABELS["test"], "test"),
    "images": [hashlib.sha256(raw).hexdigest() for raw in in_order(PICTURES["test"], "test")],
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInHub]:
    with serving(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(hub: StandInHub, home: Path) -> Iterator[Client]:
    """One process for all cases, each with a repository of its own: importing `datasets` takes seconds."""
    with talking(hub, home, ANSWER, HF_HUB_DOWNLOAD_TIMEOUT="1") as client:
        yield client


@pytest.fixture
def repo(hub: StandInHub, request: pytest.FixtureRequest) -> str:
    """A repository that no client has seen, on a hub without faults."""
    name = "lab/" + hashlib.sha1(request.node.nodeid.encode()).hexdigest()[:12]
    write_repository(hub.root / "datasets" / name)
    hub.faults, hub.tags = [], set()
    hub.requests.clear()
    return name


def ask(client: Client, repo: str, **tree: Any) -> Any:
    return client.ask(hub_dataset=repo, **{"classes": CLASSES} | tree)


def is_right(answer: Any) -> bool:
    return {key: answer.get(key) for key in RIGHT} == RIGHT


def test_downloads_once_and_then_asks_only_what_main_means(hub: StandInHub, client: Client, repo: str):
    first = ask(client, repo)
    commit = hub.commit("datasets", repo)
    assert is_right(first)
    assert first["said"] == []
    assert first["origin"] == {
        "hub_dataset": repo, "config": "default", "revision": commit, "split": "test", "image_column": "image",
    }  # fmt: skip
    shards = [f"{repo}/data/{s}-{i:05}-of-{n:05}.parquet" for s, n in SHARDS.items() for i in range(n)]
    assert sorted(hub.downloads()) == sorted([*shards, f"{repo}/README.md"])

    hub.requests.clear()
    assert ask(client, repo) == first
    assert hub.requests == [("GET", f"/api/datasets/{repo}")]
    hub.requests.clear()
    assert ask(client, repo, revision=commit) == first, "a commit that is here"
    assert not hub.requests
    part = ask(client, repo, splits={"test": "test[:40%]+train[:1]"})
    assert part["labels"] == [*RIGHT["labels"][:2], LABELS["train"][0]]


SHARD = "data/test-00001-of-00002.parquet"
PASSING = {
    "429": Fault(SHARD, status=429, retry_after=0),
    "slow": Fault(SHARD, delay=0.2, trickle=0.02),
    "stalled": Fault(SHARD, delay=1.5),
    "cut": Fault(SHARD, cut=100),
    "wrong": Fault(SHARD, wrong=True),
    "wrong card": Fault("README.md", wrong=True),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_not_noticed(hub: StandInHub, client: Client, repo: str, fault: str):
    hub.faults = [replace(PASSING[fault])]
    answer = ask(client, repo)
    assert hub.faults[0].times == 0, "the fault was met"
    assert is_right(answer), answer


LASTING = {
    "429": (Fault("/{repo}", status=429, times=99), "{repo}: the hub answers with an error (429)"),
    "500": (Fault(SHARD, status=500, times=99), "{repo}: the hub answers with an error (500)"),
    "cut": (Fault(SHARD, cut=0, times=99), "{repo}: the hub cannot be reached"),
    "short": (Fault(SHARD, short=7, times=99), "{repo}: Consistency check failed: file should be of size"),
    "wrong": (Fault(SHARD, wrong=True, times=99), "{repo}: " + SHARD + " arrived twice with other bytes"),
    "no card": (Fault("README.md", status=500, times=99), "{repo}: the hub answers with an error (500)"),
    "no listing": (Fault("/tree/{commit}", status=403, times=99), "{repo}: the hub answers with an error (403)"),
}


@pytest.mark.parametrize("fault", LASTING)
def test_a_fault_that_lasts_is_one_line_and_leaves_nothing_wrong(
    hub: StandInHub, home: Path, client: Client, repo: str, fault: str
):
    what, words = LASTING[fault]
    hub.faults = [replace(what, ending=what.ending.format(repo=repo, commit=hub.commit("datasets", repo)))]
    answer = ask(client, repo)
    assert answer["kind"] == "TaskError"
    assert answer["error"].startswith("signs: " + words.format(repo=repo)), answer
    assert "\n" not in answer["error"]
    for blob in (home / "hub" / f"datasets--{repo.replace('/', '--')}" / "blobs").glob("*"):
        assert blob.suffix == ".incomplete" or blob.name in hashes(blob), "what is whole is right"
    assert not list((home / "datasets").glob(f"{repo.replace('/', '___')}/*/*/*/*.arrow"))

    hub.faults = []
    assert is_right(ask(client, repo))


def hashes(blob: Path) -> list[str]:
    """sha256, and git's hash."""
    raw = blob.read_bytes()
    return [hashlib.sha256(raw).hexdigest(), hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()]


def test_another_commit_is_never_taken_for_the_one_that_was_asked(hub: StandInHub, client: Client, repo: str):
    first = ask(client, repo)
    (hub.root / "datasets" / repo / "README.md").write_text("# Signs, once more\n")
    commit = hub.commit("datasets", repo)
    assert commit != first["origin"]["revision"]
    hub.faults = [Fault(f"/tree/{commit}", status=403, times=99)]
    assert "does not say what files it has at commit " + commit in ask(client, repo)["error"]
    hub.faults = []
    answer = ask(client, repo)
    assert is_right(answer)
    assert answer["origin"]["revision"] == commit
    assert is_right(ask(client, repo, revision=first["origin"]["revision"])), "both are here, the old one is gone there"


def test_what_the_hub_has_no_more(hub: StandInHub, client: Client, repo: str):
    for revision in ("v9", "0" * 40):
        answer = ask(client, repo, revision=revision)
        assert answer["error"] == f"signs: {repo}@{revision}: the repository has no such revision"
    assert "no such dataset on the hub" in ask(client, "lab/nothing")["error"]
    hub.tags = {"v1"}
    first = ask(client, repo, revision="v1")
    assert is_right(first)
    hub.tags = set()
    again = ask(client, repo, revision="v1")
    assert again == first | {"said": again["said"]}
    assert again["said"] == [
        f"signs: {repo}@v1: the repository has no such revision; what is here of it is used, "
        f"commit {first['origin']['revision']}"
    ]
    hub.faults = [Fault(f"/{repo}", status=503)]
    assert ask(client, repo)["error"].endswith("clipfuse fetch taskpool=NAME_OR_FILE"), "main was not seen"
    ask(client, repo)
    hub.faults = [Fault(f"/{repo}", status=503)]
    down = ask(client, repo)
    assert is_right(down)
    assert "(503); what is here of it is used" in down["said"][0]


def test_what_a_task_says_is_compared_with_what_is_there(hub: StandInHub, client: Client, repo: str):
    known = "Known: image, label"
    said = {
        f"signs: {repo} test: unknown column 'lable'; did you mean 'label'? {known}": {"label_column": "lable"},
        f"signs: {repo} test: column 'label' has 3 classes, the task 2": {"classes": CLASSES[:2]},
        f"signs: {repo}: unknown split 'tset'; did you mean 'test'? Known: test, train": {"splits": {"test": "tset"}},
        f"signs: {repo}: datasets cannot prepare it (BuilderConfig 'big' not found. Available: ['default'])": {
            "hub_config": "big"
        },
    }
    assert [ask(client, repo, **tree)["error"] for tree in said.values()] == list(said)
    swapped = ask(client, repo, classes=["yield", "Stop", "no_entry"])
    assert "label 0 is 'stop' there and 'yield' in the task" in swapped["said"][0]


def test_a_configuration_of_several(hub: StandInHub, client: Client, repo: str):
    name = repo + "-two"
    write_repository(hub.root / "datasets" / name, ("digits", "numbers"))
    want = ask(client, name, hub_config="digits", want=True)
    size = sum(file.stat().st_size for file in (hub.root / "datasets" / name / "digits").iterdir())
    assert want == {"size": size, "missing": size, "commit": hub.commit("datasets", name)}
    answer = ask(client, name, hub_config="digits")
    assert is_right(answer)
    assert answer["origin"]["config"] == "digits"
    assert not any("numbers" in file for file in hub.downloads())
    assert ask(client, name, hub_config="digits", want=True)["missing"] == 0
    assert "Config name is missing" in ask(client, name)["error"], "another configuration is no default"


LOAD = "import sys, datasets; print(datasets.load_dataset(sys.argv[1], split='test').num_rows)"


def test_offline(hub: StandInHub, client: Client, repo: str, home: Path):
    first = ask(client, repo)
    plain = repo + "-plain"
    write_repository(hub.root / "datasets" / plain)
    loaded = run(hub, home, "-c", LOAD, plain)
    assert loaded.stdout == f"{ROWS['test']}\n", loaded.stderr
    want = ask(client, plain, want=True)
    assert want["size"] > want["missing"] == 0, "what load_dataset has prepared"
    hub.requests.clear()
    with talking(hub, home, ANSWER, HF_HUB_OFFLINE="1") as offline:
        assert ask(offline, repo) == first
        answer = ask(offline, plain)
        assert is_right(answer)
        assert answer["origin"]["revision"] == hub.commit("datasets", plain)
        assert ask(offline, repo, want=True)["missing"] == 0
        cold = ask(offline, "lab/cold")["error"]
    assert cold.startswith("signs: lab/cold: offline (HF_HUB_OFFLINE is set), and it was not prepared here before; ")
    assert not hub.requests


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()[-1]


def test_fetch_goes_on_where_it_was_stopped(hub: StandInHub, repo: str, tmp_path: Path):
    task = {"name": "signs", "classes": CLASSES, "templates": ["a {c}."], "hub_dataset": repo}
    (tmp_path / "signs.yaml").write_text(yaml.safe_dump(task))
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump({"tasks": [str(tmp_path / "signs.yaml")]}))
    words = ["fetch", f"taskpool={tmp_path / 'pool.yaml'}"]
    hub.faults = [Fault(SHARD, status=500)]
    line = one_line(cli(hub, tmp_path, *words))
    assert line == f"clipfuse: {repo}: the hub answers with an error (500) (run the same command again to go on)"

    hub.requests.clear()
    folder = hub.root / "datasets" / repo
    dry = cli(hub, tmp_path, *words, "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    (want,) = json.loads(dry.stdout)
    assert want["missing"] == (folder / SHARD).stat().st_size
    assert want["size"] == sum(file.stat().st_size for file in folder.glob("data/*"))
    assert want["commit"] == hub.commit("datasets", repo)
    done = cli(hub, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert hub.downloads() == [f"{repo}/{SHARD}"]
