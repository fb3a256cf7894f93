"""Models on ModelScope: what is downloaded, what works offline, and what is said when it does not work."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from standin_hub import Client, Fault, cli, run, talking
from standin_modelscope import StandInModelScope, serving_modelscope

from clipfuse.checkpoints.locate import local_path

TINY = local_path("pkg://clipfuse/tiny/weights")
WEIGHTS = "model.safetensors"
RIGHT = hashlib.sha256((TINY / "tiny-signs" / WEIGHTS).read_bytes()).hexdigest()
UNREACHABLE = "http://127.0.0.1:9"

FIND = """
import hashlib
from clipfuse.checkpoints.locate import CLIP, VISION
from clipfuse.checkpoints.modelscope import find_on_modelscope
from clipfuse.errors import LocateError

def answer(repo, revision=None, full=False):
    try:
        at = find_on_modelscope("as written", repo, revision, CLIP if full else VISION)
    except LocateError as error:
        return {type(error).__name__: str(error)}
    weights = at.folder / "model.safetensors"
    return {
        "ref": at.ref,
        "revision": at.revision,
        "folder": str(at.folder),
        "names": sorted(path.name for path in at.folder.iterdir()),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None,
    }
"""
NO_WAIT = "from modelscope_hub import _download\n_download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF = 0\n"
"""The client waits a second, then two, before it asks again for a file whose hash was wrong."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the caches of the tests' clients are."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInModelScope]:
    pytest.importorskip("modelscope_hub")
    with serving_modelscope(tmp_path_factory.mktemp("site")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: StandInModelScope, home: Path) -> Iterator[Client]:
    with talking(server, home, NO_WAIT + FIND) as client:
        yield client


@pytest.fixture
def site(server: StandInModelScope) -> StandInModelScope:
    server.asked.clear()
    server.faults, server.tags, server.pinned, server.late = [], set(), True, set()
    return server


@pytest.fixture
def repo(site: StandInModelScope, request: pytest.FixtureRequest) -> str:
    """A new repository with an encoder, and files that are not needed."""
    return add(site, f"lab/{re.sub('[^a-z]+', '-', request.node.name)}", "tiny-signs")


def add(site: StandInModelScope, repo: str, model: str) -> str:
    shutil.copytree(TINY / model, site.root / repo)
    for name in ("README.md", "pytorch_model.bin", "configuration.json"):
        (site.root / repo / name).write_text("not needed")
    return repo


def change(site: StandInModelScope, repo: str, file: str) -> str:
    """Make another commit, which adds a line to a text; the new text."""
    path = site.root / repo / file
    path.write_text(path.read_text() + "\n")
    return path.read_text()


def snapshot(home: Path, repo: str, revision: str) -> Path:
    return home.resolve() / "modelscope/models" / repo.replace("/", "--") / "snapshots" / revision


def test_only_what_is_needed_and_only_once(site: StandInModelScope, client: Client, home: Path, repo: str):
    commit = site.commit(repo)
    found = {
        "ref": "as written",
        "revision": commit,
        "folder": str(snapshot(home, repo, commit)),
        "names": ["config.json", WEIGHTS],
        "sha256": RIGHT,
    }
    assert client.ask(repo=repo) == found
    assert site.downloads() == [f"{repo}/config.json", f"{repo}/{WEIGHTS}"]
    assert site.listings() == [f"{repo}@master", f"{repo}@{commit}"]

    site.asked.clear()
    assert client.ask(repo=repo) == found
    assert site.asked == [(f"{repo}@master", None)], "a commit that was confirmed is not asked for again"
    site.asked.clear()
    assert client.ask(repo=repo, revision=commit) == found
    assert site.asked == [], "a commit does not change"

    change(site, repo, "README.md")
    again = client.ask(repo=repo)
    assert again["revision"] == site.commit(repo) != commit
    assert again["folder"] != found["folder"]
    assert (again["names"], again["sha256"]) == (found["names"], RIGHT)
    assert not site.downloads(), "the same files are in another snapshot"


def test_a_full_clip(site: StandInModelScope, client: Client):
    repo = add(site, "lab/base", "base")
    assert client.ask(repo=repo)["names"] == ["config.json", WEIGHTS]
    site.asked.clear()
    assert client.ask(repo=repo, full=True)["names"] == sorted(path.name for path in (TINY / "base").iterdir())
    assert set(site.downloads()).isdisjoint({f"{repo}/config.json", f"{repo}/{WEIGHTS}"})


def test_what_modelscope_downloaded_itself_is_used(site: StandInModelScope, client: Client, home: Path, repo: str):
    theirs = snapshot(home, repo, "master")
    shutil.copytree(site.root / repo, theirs)
    assert client.ask(repo=repo)["sha256"] == RIGHT
    assert not site.downloads()

    changed = change(site, repo, "config.json")
    found = client.ask(repo=repo)
    assert site.downloads() == [f"{repo}/config.json"]
    assert Path(found["folder"], "config.json").read_text() == changed
    assert (theirs / "config.json").read_text() != changed


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "offline (HF_HUB_OFFLINE is set)"),
        ({"MODELSCOPE_ENDPOINT": UNREACHABLE}, "ModelScope cannot be reached"),
    ],
    ids=["offline", "unreachable"],
)
def test_from_the_cache(
    site: StandInModelScope, client: Client, home: Path, repo: str, variables: dict[str, str], why: str
):
    found = client.ask(repo=repo)
    shutil.copytree(site.root / repo, snapshot(home, repo, "v1"))
    site.asked.clear()
    with talking(site, home, FIND, **variables) as alone:
        assert alone.ask(repo=repo) == found
        assert alone.ask(repo=repo, revision=found["revision"]) == found
        named = alone.ask(repo=repo, revision="v1")
        assert (named["revision"], named["sha256"]) == ("v1", RIGHT)
        assert alone.ask(repo="lab/never-seen") == {
            "OutOfReachError": f"lab/never-seen: {why} and config.json, model.safetensors are not in the cache"
        }
        assert "OutOfReachError" in alone.ask(repo=repo, full=True), "an encoder is not a full CLIP"
        assert "OutOfReachError" in alone.ask(repo=repo, revision="0" * 40)
    assert site.asked == []


def test_goes_on_where_it_was_cut_off(site: StandInModelScope, client: Client, home: Path, repo: str):
    site.faults = [Fault(WEIGHTS, cut=1_200_000)]
    (text,) = client.ask(repo=repo).values()
    assert text == f"{repo}: ModelScope cannot be reached"
    here = (snapshot(home, repo, site.commit(repo)) / f"{WEIGHTS}.incomplete").stat().st_size
    assert 0 < here <= 1_200_000

    site.asked.clear()
    assert client.ask(repo=repo)["sha256"] == RIGHT
    assert [asked for asked in site.asked if "@" not in asked[0]] == [(f"{repo}/{WEIGHTS}", f"bytes={here}-")]


@pytest.mark.parametrize("file", ["config.json", WEIGHTS])
def test_wrong_bytes_are_not_kept(site: StandInModelScope, client: Client, home: Path, repo: str, file: str):
    site.faults = [Fault(f"{repo}/{file}", wrong=True, times=99)]
    assert client.ask(repo=repo) == {
        "LocateError": f"{repo}: {file} arrived with other bytes than ModelScope's hash says, again and again; "
        "it is not kept"
    }
    assert not list(snapshot(home, repo, site.commit(repo)).glob(f"{file}*"))
    site.faults = [Fault(f"{repo}/{file}", wrong=True)]
    assert client.ask(repo=repo)["sha256"] == RIGHT, "once is got over"


def test_damage_in_the_cache_is_mended(site: StandInModelScope, client: Client, repo: str):
    weights = Path(client.ask(repo=repo)["folder"], WEIGHTS)
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 0xFF
    weights.write_bytes(raw)
    assert client.ask(repo=repo)["sha256"] == RIGHT
    assert site.downloads().count(f"{repo}/{WEIGHTS}") == 2


@pytest.mark.parametrize("why", ["no commits", "another commit"])
def test_without_a_commit_the_name_stands(site: StandInModelScope, client: Client, home: Path, repo: str, why: str):
    site.pinned, site.late = why != "no commits", {WEIGHTS}
    found = client.ask(repo=repo)
    assert (found["revision"], found["folder"]) == ("master", str(snapshot(home, repo, "master")))
    site.asked.clear()
    assert client.ask(repo=repo) == found
    assert not site.downloads()

    changed = change(site, repo, "config.json")
    assert client.ask(repo=repo) == found
    assert Path(found["folder"], "config.json").read_text() == changed


def test_revisions_and_refusals(site: StandInModelScope, client: Client, repo: str):
    site.tags = {"v1"}
    assert client.ask(repo=repo, revision="v1")["revision"] == site.commit(repo)
    for name in ("text", "closed", "broken", "cut"):
        (site.root / "lab" / name).mkdir()
        (site.root / "lab" / name / "README.md").write_text("words")
    closed, broken = Fault("lab/closed@master", status=403), Fault("lab/broken@master", status=503)
    site.faults = [closed, broken, Fault("lab/cut@master", cut=20)]
    cached = "and config.json, model.safetensors are not in the cache"
    said = {
        (repo, "v9"): f"{repo}@v9: ModelScope lists no files; the repository is empty or has no such revision",
        ("lab/nothing", None): "lab/nothing: ModelScope has no such model or revision "
        "(or it is private and MODELSCOPE_API_TOKEN is not set)",
        (
            "lab/text",
            None,
        ): "lab/text: ModelScope has no config.json in this repository; it is not a transformers model",
        ("lab/closed", None): "lab/closed: ModelScope gives no access; ask for it there and set MODELSCOPE_API_TOKEN",
        ("lab/broken", None): f"lab/broken: ModelScope answers with an error (503) {cached}",
        ("lab/cut", None): f"lab/cut: ModelScope cannot be reached {cached}",
    }
    for (name, revision), text in said.items():
        assert list(client.ask(repo=name, revision=revision).values()) == [text]


def test_nothing_on_the_terminal(site: StandInModelScope, tmp_path: Path, repo: str):
    site.faults = [Fault("config.json", status=503), Fault(WEIGHTS, wrong=True)]
    script = f"{NO_WAIT}{FIND}\nassert 'sha256' not in answer({repo!r})\nassert answer({repo!r})['sha256']"
    done = run(site, tmp_path, "-W", "error", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_pool_with_a_platform(site: StandInModelScope, tmp_path: Path):
    for name in ("digits", "signs"):
        add(site, f"pool/{name}", f"tiny-{name}")
    pool = {"platform": "modelscope", "models": {"digits": "pool/digits", "signs": "pool/signs"}}
    (tmp_path / "pool.json").write_text(json.dumps(pool))
    words = ["merge", "method=simple_average", f"modelpool={tmp_path / 'pool.json'}", "--out"]
    assert cli(site, tmp_path, *words, str(tmp_path / "first")).returncode == 0
    recipe = json.loads((tmp_path / "first/clipfuse.json").read_text())
    told = [(member["path"], member["revision"]) for member in recipe["pool"]]
    assert told == [(f"modelscope://pool/{name}", site.commit(f"pool/{name}")) for name in ("digits", "signs")]
    assert all(member["files"][WEIGHTS] for member in recipe["pool"]), "hashes are known from the download"

    site.asked.clear()
    assert cli(site, tmp_path, *words, str(tmp_path / "second"), HF_HUB_OFFLINE="1").returncode == 0
    assert (tmp_path / "second" / WEIGHTS).read_bytes() == (tmp_path / "first" / WEIGHTS).read_bytes()
    assert site.asked == []


def test_without_the_package(tmp_path: Path):
    script = f"import sys\nsys.modules['modelscope_hub'] = None\n{FIND}\nprint(answer('lab/signs'))"
    environ = os.environ | {"CLIPFUSE_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=100)
    text = "lab/signs: models from ModelScope need one more package: pip install 'clipfuse[modelscope]'"
    assert done.stdout == f"{ {'LocateError': text} }\n", done.stderr


@pytest.mark.network
def test_the_real_site(tmp_path: Path):
    """Names, hashes and a commit for a real repository; of its files the smallest is downloaded."""
    pytest.importorskip("modelscope_hub")
    script = """
import json
from clipfuse.checkpoints.hub import HubRef
from clipfuse.checkpoints.locate import COMMIT, VISION
from clipfuse.checkpoints.modelscope import download, listed_files

hub = HubRef("openai-mirror/clip-vit-base-patch32", None)
at, files = listed_files(hub, VISION)
folder = download(hub, at, files[:1])
print(json.dumps([bool(COMMIT.fullmatch(at)), [len(file.digest or "") for file in files], (folder / files[0].name).name]))
"""
    environ = os.environ | {"CLIPFUSE_CACHE": str(tmp_path), "MODELSCOPE_CACHE": str(tmp_path / "modelscope")}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    pinned, digests, name = json.loads(done.stdout)
    assert pinned
    assert set(digests) == {64}
    assert name == "config.json"
