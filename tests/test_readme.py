"""The README is true: its tree is the tree, its Python runs, its commands exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TREE = README.split("## Where things are")[1].split("More:")[0]


def folders(parent: Path) -> set[str]:
    """Folders that git knows in `parent`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", str(parent.relative_to(ROOT) or ".")]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    inside = [Path(file).relative_to(parent.relative_to(ROOT)) for file in files if (ROOT / file).exists()]
    return {path.parts[0] for path in inside if len(path.parts) > 1 and not path.parts[0].startswith(".")}


def test_the_tree_is_the_real_tree():
    top = set(re.findall(r"^    (\w+)/", TREE, re.M))
    inside = set(re.findall(r"^      (\w+)/", TREE, re.M))
    assert top == folders(ROOT)
    assert inside == folders(ROOT / "src/clipfuse")


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", ["README.md", "docs/modelpool/clip_vit.md"])
def test_the_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Blocks marked `python` run from top to bottom in one namespace; those that need the hub are marked `py`."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_the_commands_exist():
    from clipfuse.cli.main import app

    verbs = {command.name for command in app.registered_commands}
    words = [shlex.split(line) for line in re.findall(r"^    (clipfuse .*?)(?:\s+#.*)?$", README, re.M)]
    assert {command[1] for command in words} <= verbs
    assert len(words) >= 8


def test_the_offline_commands_pass_the_check(capsys: pytest.CaptureFixture[str]):
    from clipfuse.cli.options import tree_of
    from clipfuse.run.plan import make_plan
    from clipfuse.tiny.suite import SUITE

    lines = re.findall(r"^    clipfuse run (.*modelpool=tiny_TA8.*?)(?:\s+#.*)?$", README, re.M)
    assert len(lines) == 4
    for line in lines:
        assert make_plan(tree_of(shlex.split(line), {})).tasks == tuple(task.name for task in SUITE)
