"""A stand-in for ModelScope on this machine: serves folders to its real client, records what that asks for.

`root/<org>/<name>/…` are repositories with one branch, `master`. A file's commit is made from it and its time; the
newest one is the repository's, and older ones are gone. Large files are served from another address, as there. Runs
with `standin_hub.run` and its like.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from standin_hub import LARGE, Answer, Fault, Handler, as_json, content, files, refusal

API, CDN = "/api/v1/models/", "/cdn/api/v1/models/"


class StandInModelScope(ThreadingHTTPServer):
    """The server; `asked` are the (what, Range header) that came in: `org/name@revision` for a listing, else
    `org/name/file`. `faults` is what is to go wrong with either, `tags` other names of every repository's commit;
    with `pinned` False it knows no commits; `late` are files that came with a later one of the same second."""

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str]] = []
        self.asked: list[tuple[str, str | None]] = []
        self.faults: list[Fault] = []
        self.tags: set[str] = set()
        self.pinned = True
        self.late: set[str] = set()

    def environ(self, home: Path) -> dict[str, str]:
        """Variables that lead a client here, with its cache under `home`; it tries everything once."""
        return {
            "MODELSCOPE_ENDPOINT": self.url,
            "MODELSCOPE_CACHE": str(home / "modelscope"),
            "MODELSCOPE_HOME": str(home / "credentials"),
            "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1",
            "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "0",
            "NO_PROXY": "127.0.0.1",
            "TQDM_DISABLE": "1",
        }

    def listings(self) -> list[str]:
        return [what for what, _ in self.asked if "@" in what]

    def downloads(self) -> list[str]:
        """`org/name/file` of every file that was asked for, in order."""
        return [what for what, _ in self.asked if "@" not in what]

    def commit(self, repo: str) -> str:
        """The repository's commit."""
        return max(self.entries(repo), key=lambda entry: entry["CommittedDate"])["Revision"]

    def entries(self, repo: str) -> list[dict[str, Any]]:
        """The files of a repository as they are listed."""
        found = []
        for name, path in files(self.root / repo):
            raw, time = path.read_bytes(), path.stat().st_mtime_ns
            sizes = {"Path": name, "Name": path.name, "Type": "blob", "Size": len(raw), "IsLFS": name.endswith(LARGE)}
            changed = {"CommittedDate": time, "Revision": hashlib.sha1(f"{name} {time}".encode()).hexdigest()}
            found.append(sizes | changed | {"Sha256": hashlib.sha256(raw).hexdigest()})
        return [*found, {"Path": "folder", "Name": "folder", "Type": "tree", "CommittedDate": 0}]

    def answer(self, url: str, range_header: str | None) -> Answer:
        """The answer to a request, after the first fault that is meant for it."""
        parts = urlsplit(url)
        path, query = parts.path, {key: values[0] for key, values in parse_qs(parts.query).items()}
        org, name, _, *rest = (path.removeprefix("/cdn").removeprefix(API) + "/" * 3).split("/")
        if not path.startswith((API, CDN)) or not name:
            return refusal(404, None)
        repo, revision, file = f"{org}/{name}", query.get("Revision", "master"), query.get("FilePath", "")
        away = file.endswith(LARGE) and path.startswith(API)
        if not away:
            self.asked.append((f"{repo}@{revision}" if rest[0] == "files" else f"{repo}/{file}", range_header))
        if not (self.root / repo).is_dir():
            answer = as_json({"Code": 10010205001, "Message": "record not found", "Success": False})
            answer.status = 404
        elif revision not in ("master", *self.tags, *({self.commit(repo)} if self.pinned else ())):
            answer = as_json({"Code": 200, "Data": {"Files": None, "LatestCommitter": None}, "Success": True})
        elif rest[0] == "files":
            late = self.late if revision == self.commit(repo) else ()
            there = [entry for entry in self.entries(repo) if entry["Path"] not in late]
            answer = as_json({"Code": 200, "Data": {"Files": there}, "Success": True})
        elif away:
            return Answer(302, headers={"Location": f"{self.url}/cdn{url}"})
        else:
            answer = content(self.root / repo, file, revision, range_header)
        for fault in self.faults:
            if fault.times > 0 and self.asked[-1][0].endswith(fault.ending):
                fault.times -= 1
                return fault.apply(answer)
        return answer

    def spoil(self, path: str, answer: Answer) -> Answer:
        return answer


@contextmanager
def serving_modelscope(root: Path) -> Iterator[StandInModelScope]:
    """A running stand-in over the repositories under `root`."""
    with StandInModelScope(root.resolve()) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
