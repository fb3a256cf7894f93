"""A stand-in for the Hugging Face hub on this machine: serves folders to the real clients, records what they ask for.

`root/models/<org>/<name>/…` and `root/datasets/<org>/<name>/…` are repositories with one branch, `main`, and one
commit; when files change it is another one, and the old one is gone. Large files have sha256 etags as on the hub, small ones git's. Clients read HF_ENDPOINT when they are imported:
run them in a process of their own, with `environ`. Clients with a token may make repositories and put files into them.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".bin", ".parquet", ".msgpack")
"""Endings of files that the hub keeps outside git."""
REPO = r"(?P<repo>[^/]+/[^/]+)"
API = re.compile(rf"/api/(?P<kind>models|datasets)/{REPO}(/(?P<what>[a-z-]+)(/(?P<revision>[^/]+)(/(?P<path>.+))?)?)?")
BATCH = re.compile(rf"/((?P<kind>datasets)/)?{REPO}\.git/info/lfs/objects/batch")
STORE = re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})")
RESOLVE = re.compile(rf"/((?P<kind>datasets)/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Answer:
    """What goes back to a client; `cut` bytes of the body are sent before the connection closes, all if None.

    It begins after `delay` seconds, and comes in eight pieces with `trickle` seconds between them.
    """

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    delay: float = 0
    trickle: float = 0


@dataclass
class Fault:
    """What the next `times` GETs of a path that ends so get.

    A refusal with `status`, `code` and `retry_after` seconds; a body that breaks off after `cut` bytes, that is
    `short` of bytes without saying so, that is `wrong` in one byte; or the right one, slowly.
    """

    ending: str
    status: int | None = None
    code: str | None = None
    retry_after: int | None = None
    cut: int | None = None
    short: int = 0
    wrong: bool = False
    delay: float = 0
    trickle: float = 0
    times: int = 1

    def apply(self, answer: Answer) -> Answer:
        """The answer with this fault."""
        if self.status:
            answer = refusal(self.status, self.code)
            if self.retry_after is not None:
                answer.headers["Retry-After"] = str(self.retry_after)
        body = answer.body[: len(answer.body) - self.short]
        if self.wrong:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]
        return replace(answer, body=body, cut=self.cut, delay=self.delay, trickle=self.trickle)


class StandInHub(ThreadingHTTPServer):
    """The server; `requests` are the (method, path) that came in, `faults` what is to go wrong, `tags` other names of
    every repository's commit, `commits` the (repository, title) of those that clients made, `hidden` private
    repositories, `readers` tokens that may not write."""

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.tags: set[str] = set()
        self.commits: list[tuple[str, str]] = []
        self.hidden: set[str] = set()
        self.readers: set[str] = set()
        self.objects: dict[str, bytes] = {}

    def environ(self, home: Path) -> dict[str, str]:
        """Variables that lead a client here, with its cache under `home`."""
        switches = ("DISABLE_XET", "DISABLE_TELEMETRY", "DISABLE_PROGRESS_BARS", "DISABLE_UPDATE_CHECK")
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home)} | {f"HF_HUB_{switch}": "1" for switch in switches}

    def downloads(self) -> list[str]:
        """`org/name/file` of every file whose content was asked for, in order."""
        return [target(path) for method, path in self.requests if method == "GET" and RESOLVE.fullmatch(path)]

    def commit(self, kind: str | None, repo: str) -> str:
        """The repository's one commit; another when its files change."""
        folder = self.root / (kind or "models") / repo
        listing = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files(folder)]
        return hashlib.sha1(repr(listing).encode()).hexdigest()

    def answer(self, url: str, range_header: str | None) -> Answer:
        """The answer to a request, before faults."""
        parts = urlsplit(url)
        path, query = unquote(parts.path), parse_qs(parts.query)
        match = API.fullmatch(path) or RESOLVE.fullmatch(path)
        if match is None:
            return refusal(404, None)
        folder = (self.root / (match["kind"] or "models") / match["repo"]).resolve()
        if not folder.is_dir() or self.root not in folder.parents:
            return refusal(404, "RepoNotFound")
        commit = self.commit(match["kind"], match["repo"])
        if match["revision"] not in (None, "main", commit, *self.tags):
            return refusal(404, "RevisionNotFound")
        if match.re is RESOLVE:
            return content(folder, match["path"], commit, range_header)
        if match["what"] in (None, "revision"):
            blobs = query.get("blobs", [""])[0].lower() == "true"
            return as_json(info(match["repo"], folder, commit, blobs, match["repo"] in self.hidden))
        if match["what"] == "tree":
            recursive = query.get("recursive", [""])[0].lower() in ("true", "1")
            return tree(folder, match["path"] or "", recursive)
        return refusal(404, None)

    def write(self, path: str, body: bytes, token: str | None) -> Answer:
        """The answer to what a client brings, once it is in its place."""
        if token is None or token in self.readers:
            return refusal(403 if token else 401, None)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return as_json({"errors": [], "warnings": []})
        if match := STORE.fullmatch(path):
            self.objects[match["oid"]] = body
            return Answer(200 if hashlib.sha256(body).hexdigest() == match["oid"] else 400)
        match = BATCH.fullmatch(path) or API.fullmatch(path)
        folder = self.root / (match["kind"] or "models") / match["repo"] if match else None
        if match is None or folder is None or not folder.is_dir():
            return refusal(404, "RepoNotFound")
        if match.re is BATCH:
            return as_json({"transfer": "basic", "objects": [self.room_for(o) for o in json.loads(body)["objects"]]})
        if match["what"] == "preupload":
            return as_json({"files": [mode(folder, file["path"]) for file in json.loads(body)["files"]]})
        if match["what"] == "commit":
            return self.receive(match["repo"], folder, [json.loads(line) for line in body.splitlines()])
        return refusal(404, None)

    def create(self, wanted: dict[str, Any]) -> Answer:
        """A new repository, empty."""
        repo = f"{wanted['organization']}/{wanted['name']}"
        folder = self.root / f"{wanted.get('type', 'model')}s" / repo
        if wanted.get("visibility") == "private" and not folder.exists():
            self.hidden.add(repo)
        answer = as_json({"url": f"{self.url}/{repo}", "name": repo, "id": repo})
        answer.status = 409 if folder.exists() else 200
        folder.mkdir(parents=True, exist_ok=True)
        return answer

    def room_for(self, thing: dict[str, Any]) -> dict[str, Any]:
        """Where a large file goes; nowhere if it is here already."""
        there = thing["oid"] in self.objects
        actions = {} if there else {"actions": {"upload": {"href": f"{self.url}/lfs/{thing['oid']}", "header": {}}}}
        return {"oid": thing["oid"], "size": thing["size"], **actions}

    def receive(self, repo: str, folder: Path, lines: list[dict[str, Any]]) -> Answer:
        """A commit: a header, then files and large files that were brought before, or names of files that go."""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit", self.commit("models", repo)) != self.commit("models", repo):
                    return refusal(412, None)
                self.commits.append((repo, value["summary"]))
            elif line["key"] == "deletedFile":
                (folder / value["path"]).unlink()
            else:
                large = line["key"] == "lfsFile"
                raw = self.objects[value["oid"]] if large else base64.b64decode(value["content"])
                (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
                (folder / value["path"]).write_bytes(raw)
        commit = self.commit("models", repo)
        return as_json({"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{repo}/commit/{commit}"})

    def spoil(self, path: str, answer: Answer) -> Answer:
        """The answer after the first fault that is meant for this path."""
        for fault in self.faults:
            if fault.times > 0 and target(path).endswith(fault.ending):
                fault.times -= 1
                return fault.apply(answer)
        return answer


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: StandInHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply(self.server.answer(self.path, self.headers.get("Range")))

    def do_HEAD(self) -> None:
        self.reply(self.server.answer(self.path, None))

    def do_POST(self) -> None:
        self.do_PUT()

    def do_PUT(self) -> None:
        body = (
            self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else self.chunks()
        )
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if STORE.fullmatch(path):  # such addresses are signed, and come without a token
            token = token or "signed"
        self.reply(self.server.write(path, body, token))

    def chunks(self) -> bytes:
        """A body of unknown length, piece by piece."""
        found = b""
        while count := int(self.rfile.readline(), 16):
            found += self.rfile.read(count)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def reply(self, answer: Answer) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        if self.command == "GET":
            answer = self.server.spoil(path, answer)
        with suppress(BrokenPipeError, ConnectionResetError):  # a client that did not wait
            self.send(answer)

    def send(self, answer: Answer) -> None:
        time.sleep(answer.delay)
        self.send_response(answer.status)
        for name, value in (answer.headers | {"Content-Length": str(len(answer.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            body = answer.body[: answer.cut]
            piece = len(body) // 8 + 1 if answer.trickle else max(1, len(body))
            for start in range(0, len(body), piece):
                self.wfile.write(body[start : start + piece])
                time.sleep(answer.trickle)
        if answer.cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal; `requests` has it."""


@contextmanager
def serving(root: Path) -> Iterator[StandInHub]:
    """A running stand-in hub over the repositories under `root`."""
    with StandInHub(root.resolve()) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


def environ(hub: StandInHub, home: Path, **variables: str) -> dict[str, str]:
    """The environment of a process whose hub is `hub` and whose caches are under `home`."""
    rest = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return rest | hub.environ(home) | {"CLIPFUSE_CACHE": str(home / "clipfuse")} | variables


def run(hub: StandInHub, home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python with `words`, in a process of its own."""
    env = environ(hub, home, **variables)
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=100)


def cli(hub: StandInHub, home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`clipfuse` with `words`."""
    return run(hub, home, "-c", "from clipfuse.cli.main import main; main()", *words, **variables)


class Client:
    """A process that answers: each line of JSON that it reads, `script`'s function `answer` turns into another."""

    def __init__(self, hub: StandInHub, home: Path, script: str, **variables: str):
        loop = "\nimport json, sys\nfor line in sys.stdin: print(json.dumps(answer(**json.loads(line))), flush=True)\n"
        self.process = subprocess.Popen(
            [sys.executable, "-c", script + loop],
            env=environ(hub, home, **variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **question: Any) -> Any:
        """What the process answers, waited for. Raises JSONDecodeError when it ended with an error."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


@contextmanager
def talking(hub: StandInHub, home: Path, script: str, **variables: str) -> Iterator[Client]:
    """A client that lives as long as the block."""
    client = Client(hub, home, script, **variables)
    try:
        yield client
    finally:
        client.close()


def target(path: str) -> str:
    """`org/name/file` of a file's address, other paths as they are."""
    match = RESOLVE.fullmatch(path)
    return f"{match['repo']}/{match['path']}" if match else path


def files(folder: Path) -> list[tuple[str, Path]]:
    return [(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file()]


def as_json(tree: Any) -> Answer:
    return Answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})


def refusal(status: int, code: str | None) -> Answer:
    return Answer(status, b'{"error": "refused"}', {"X-Error-Code": code} if code else {})


def mode(folder: Path, name: str) -> dict[str, Any]:
    """How a client is to bring a file."""
    there = entry(folder, folder / name)["oid"] if (folder / name).is_file() else None
    large = {"uploadMode": "lfs" if name.endswith(LARGE) else "regular", "shouldIgnore": False}
    return {"path": name, **large, **({"oid": there} if there else {})}


def info(repo: str, folder: Path, commit: str, blobs: bool, hidden: bool) -> dict[str, Any]:
    """A repository as the API describes it; sizes and hashes of files only with `blobs`."""
    siblings = []
    for name, path in files(folder):
        details = entry(folder, path) if blobs else {}
        siblings.append({"rfilename": name, "blobId": details.get("oid"), **details})
    flags = {"private": hidden, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
    dates = {"lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z"}
    card = {"cardData": front} if (front := front_matter(folder / "README.md")) else {}
    return {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, **flags, **dates, **card}


def front_matter(readme: Path) -> Any:
    """What a card says in YAML."""
    parts = readme.read_bytes().split(b"---\n") if readme.is_file() else []
    return yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None


def entry(folder: Path, path: Path) -> dict[str, Any]:
    """A file or folder in a listing."""
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    raw = path.read_bytes()
    found = {"type": "file", "path": name, "size": len(raw), "oid": etag(name, raw)}
    lfs = {"oid": found["oid"], "sha256": found["oid"], "size": len(raw), "pointerSize": 134}
    return found | ({"lfs": lfs} if name.endswith(LARGE) else {})


def etag(name: str, raw: bytes) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(raw).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


def tree(folder: Path, path: str, recursive: bool) -> Answer:
    if not (folder / path).is_dir():
        return refusal(404, "EntryNotFound")
    found = (folder / path).rglob("*") if recursive else (folder / path).iterdir()
    return as_json([entry(folder, member) for member in sorted(found)])


def content(folder: Path, path: str, commit: str, range_header: str | None) -> Answer:
    """A file or the asked part of it."""
    file = (folder / path).resolve()
    if folder not in file.parents or not file.is_file():
        return refusal(404, "EntryNotFound")
    raw = file.read_bytes()
    headers = {
        "ETag": f'"{etag(path, raw)}"',
        "X-Repo-Commit": commit,
        "X-Linked-Size": str(len(raw)),
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", range_header or "")
    if match is None:
        return Answer(200, raw, headers)
    first, last = int(match[1]), int(match[2] or len(raw) - 1)
    part = raw[first : last + 1]
    return Answer(206, part, headers | {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(raw)}"})
