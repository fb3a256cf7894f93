"""What a user may write for a model: folders, files, packaged data, hub ids."""

from pathlib import Path

import pytest

from clipfuse.checkpoints.locate import HubRef, hub_ref, local_path, locate
from clipfuse.errors import LocateError


@pytest.mark.parametrize(
    ("ref", "found"),
    [
        ("openai/clip-vit-base-patch32", HubRef("openai/clip-vit-base-patch32", None)),
        ("org/name@main", HubRef("org/name", "main")),
        ("org/name@refs/pr/3", HubRef("org/name", "refs/pr/3")),
        ("org/name@" + "0123456789" * 4, HubRef("org/name", "0123456789" * 4)),
        ("gpt2", HubRef("gpt2", None)),
        ("./org/name", None),
        ("../org/name", None),
        ("/org/name", None),
        ("~/org/name", None),
        ("pkg://org/name", None),
        ("org/name/deeper", None),
        ("org/na me", None),
        ("https://huggingface.co/org/name", None),
        ("", None),
    ],
)
def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str, found: HubRef | None):
    monkeypatch.chdir(tmp_path)
    assert hub_ref(ref) == found


def test_a_folder_here_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    at = locate("org/name")
    assert (at.ref, at.folder, at.revision) == ("org/name", Path("org/name"), None)


def test_home_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert locate("~/model").folder == tmp_path / "model"


def test_packaged_data():
    folder = local_path("pkg://clipfuse/tiny/weights/base")
    assert (folder / "config.json").is_file()
    assert locate("pkg://clipfuse/tiny/weights/base").folder == folder


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("./nowhere", "./nowhere: no such file or folder; a hub id has the form org/name or org/name@revision"),
        ("", "path: no such file or folder; a hub id has the form org/name or org/name@revision"),
        ("a/b/c", "a/b/c: no such file or folder; a hub id has the form org/name or org/name@revision"),
        ("pkg://no_such_package/a", "pkg://no_such_package/a: no package 'no_such_package' is installed"),
        ("pkg://", "pkg://: no package '' is installed"),
        ("pkg://../a", "pkg://../a: no package '..' is installed"),
        ("pkg://json.tool/a", "pkg://json.tool/a: no package 'json.tool' is installed"),
        ("pkg://clipfuse/nothing", "pkg://clipfuse/nothing: no such file or folder; "),
    ],
)
def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str, said: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LocateError) as caught:
        locate(ref)
    assert str(caught.value).startswith(said)
