"""Hostile neighbours of weights: names, links, pipes and devices, huge and odd JSON, locks and pools.

Beside test_damaged.py (damaged weights), test_unpickle.py and test_torch_zip.py (hostile pickles and zips): each is
refused in one line, within two seconds and little memory, and no file is made or changed.
"""

import json
import os
import time
import tracemalloc
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from random_models import SMALL, random_models, vision_model
from safetensors.torch import save_file
from torch import Tensor

import clipfuse
from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.checkpoints.geometry import find_geometry, read_geometry
from clipfuse.checkpoints.ledger import keep_ledger
from clipfuse.checkpoints.locate import locate
from clipfuse.config.pool_folder import folder_pool
from clipfuse.errors import ClipfuseError
from clipfuse.pool.clip_vision import HuggingFaceClipVisionPool
from clipfuse.run.convert import convert

pytestmark = pytest.mark.timeout(20)
"""A reader that waits for a pipe would wait for ever."""

Write = Callable[[Path], object]
NORM, BIAS = "vision_model.post_layernorm.weight", "post_layernorm.bias"
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}
SAFE, INDEX, CONFIG, OPENCLIP = (
    *("model.safetensors", "model.safetensors.index.json", "config.json", "open_clip_config.json"),
)
GIB = 1 << 30


def tensors(header: object) -> Write:
    raw = json.dumps(header).encode()
    return lambda folder: (folder / SAFE).write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))


def beside(**entries: object) -> Write:
    return tensors({NORM: ENTRY, **entries})


def text(file: str, tree: object) -> Write:
    return lambda folder: (folder / file).write_text(tree if isinstance(tree, str) else json.dumps(tree))


def sparse(file: str, size: int = GIB, start: bytes = b"") -> Write:
    """A file of zeros that takes no room on the disk."""

    def write(folder: Path) -> None:
        (folder / file).write_bytes(start)
        os.truncate(folder / file, size)

    return write


def pipe(file: str) -> Write:
    return lambda folder: os.mkfifo(folder / file)


def link(file: str, target: str) -> Write:
    return lambda folder: (folder / file).symlink_to(target)


def directory(file: str) -> Write:
    return lambda folder: (folder / file).mkdir()


def all_of(*writes: Write) -> Write:
    return lambda folder: [write(folder) for write in writes]


def shards(weight_map: object, *more: Write) -> Write:
    return all_of(text(INDEX, {"weight_map": weight_map}), *more)


def vision(**changes: object) -> Write:
    return text(CONFIG, {"model_type": "clip", "vision_config": changes})


def openclip(width: object, head_width: object = 1, **more: object) -> Write:
    return text(OPENCLIP, {"model_cfg": {"vision_cfg": {"width": width, "head_width": head_width}}, **more})


def locked(**changes: object) -> Write:
    entry = {"kind": "model", "ref": "model", "revision": None, "files": {SAFE: "0" * 64}}
    return text("clipfuse.lock", {"schema": 1, "opened": [entry | changes]})


def open_model(folder: Path) -> None:
    opened = open_checkpoint(folder, str(folder))
    assert all(bool(tensor.isfinite().all()) for tensor in opened.values())
    find_geometry(folder, opened)


def open_locked(folder: Path) -> None:
    with keep_ledger(folder):
        locate(str(folder))


def open_pool(folder: Path) -> None:
    HuggingFaceClipVisionPool.from_yaml(folder / "pool.yaml")


def sound(folder: Path) -> None:
    save_file(prefixed(random_models()["_pretrained_"]), folder / SAFE)


def prefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"vision_model.{name.removeprefix('vision_model.')}": tensor for name, tensor in tensors.items()}


NO_NAME, NO_CLIP, NO_ENTRY = "is no name of a tensor", "do not belong to a CLIP", "no dtype, shape and offsets"
NO_WEIGHTS, NO_SHARD, NO_INDEX = "holds no weights", "is not a plain file name", "is not an index of shards"
NO_LOCK, NO_CONFIG = "is no clipfuse.lock", "is not a model's configuration"
NO_OPENCLIP, NOT_THERE = "is not the configuration of an OpenCLIP ViT", "which is not there"

LAUGH = "models: []\na0: ha\n" + "".join(f"a{n}: {f'${{a{n - 1}}}' * 9}\n" for n in range(1, 9))

ZOO: dict[Callable[[Path], object], dict[str, tuple[Write, str]]] = {
    open_model: {
        "name that climbs": (beside(**{"../../../ran": EMPTY}), NO_CLIP),
        "name from the root": (beside(**{"/tmp/ran": EMPTY}), NO_CLIP),
        "name that climbs behind the prefix": (beside(**{"vision_model.../../ran": EMPTY}), NO_CLIP),
        "name of two lines": (beside(**{f"{NORM}\nall is well": EMPTY}), NO_NAME),
        "name with a NUL": (beside(**{f"{NORM}\0": EMPTY}), NO_NAME),
        "name that colours a terminal": (beside(**{"\x1b[31m": EMPTY}), NO_NAME),
        "name that is half a character": (beside(**{"\ud800": EMPTY}), NO_NAME),
        "name that reads backwards": (beside(**{"\u202egnp.exe": EMPTY}), NO_NAME),
        "name of a megabyte": (beside(**{"n" * (1 << 20): EMPTY}), NO_NAME),
        "metadata is a list": (beside(__metadata__=["format"]), "__metadata__ is no mapping of texts"),
        "metadata is a number": (beside(__metadata__={"format": 1}), "__metadata__ is no mapping of texts"),
        "metadata is an object": (beside(__metadata__={"format": {"a": []}}), "__metadata__ is no mapping of texts"),
        "nothing times 2^124": (beside(**{"logit_scale": EMPTY | {"shape": [1 << 62, 0, 1 << 62]}}), NO_ENTRY),
        "size of 10^30": (beside(**{"logit_scale": EMPTY | {"shape": [10**30, 0]}}), NO_ENTRY),
        "a thousand dimensions": (beside(**{NORM: ENTRY | {"shape": [2, *[1] * 1000]}}), NO_ENTRY),
        "dtype of a megabyte": (beside(**{NORM: ENTRY | {"dtype": "F" * (1 << 20)}}), "has dtype 'FF"),
        "many empty tensors": (beside(**{f"t{n}": EMPTY for n in range(20_000)}), NO_CLIP),
        "header of 90 MB": (sparse(SAFE, 100 << 20, (90 << 20).to_bytes(8, "little")), "is no safetensors file or is"),
        "weights are a pipe": (pipe(SAFE), NO_WEIGHTS),
        "weights are a directory": (directory(SAFE), NO_WEIGHTS),
        "weights never end": (link(SAFE, "/dev/zero"), NO_WEIGHTS),
        "weights are nothing": (link(SAFE, "/dev/null"), NO_WEIGHTS),
        "weights link to themselves": (link(SAFE, SAFE), NO_WEIGHTS),
        "weights link to a secret": (link(SAFE, "../secret"), "is no safetensors file or is"),
        "pickle links to a secret": (link("pytorch_model.bin", "../secret"), "is no torch file"),
        "index is a pipe": (pipe(INDEX), NO_WEIGHTS),
        "index of a gigabyte": (sparse(INDEX), NO_INDEX),
        "index with a name twice": (text(INDEX, f'{{"weight_map": {{"{NORM}": "a", "{NORM}": "b"}}}}'), NO_INDEX),
        "index with two maps": (text(INDEX, '{"weight_map": {}, "weight_map": {}}'), NO_INDEX),
        "shard is a pipe": (shards({NORM: "a.safetensors"}, pipe("a.safetensors")), NOT_THERE),
        "shard never ends": (shards({NORM: "a.safetensors"}, link("a.safetensors", "/dev/zero")), NOT_THERE),
        "shard links to itself": (shards({NORM: "a.safetensors"}, link("a.safetensors", "a.safetensors")), NOT_THERE),
        "shard links to a secret": (shards({NORM: "a.safetensors"}, link("a.safetensors", "../secret")), "is no safe"),
        "shard of two lines": (shards({NORM: "a\nb.safetensors"}), NO_SHARD),
        "shard with a NUL": (shards({NORM: "a\0"}), NO_SHARD),
        "shard with half a character": (shards({NORM: "\ud800"}), NO_SHARD),
        "shard with a name of a megabyte": (shards({NORM: "n" * (1 << 20)}), NO_SHARD),
        "shard by the folder's own name": (shards({NORM: "."}), NO_SHARD),
        "shard without a name": (shards({NORM: ""}), NO_SHARD),
        "shard behind a drive": (shards({NORM: "..\\..\\a"}), NOT_THERE),
        "many shards": (shards({f"{NORM}{n}": f"{n}.safetensors" for n in range(10_000)}), NOT_THERE),
        "width of a negative": (all_of(sound, openclip(-8)), "its shapes are none of a ViT"),
        "heads of 10^300": (all_of(sound, openclip(10**300)), "its shapes are none of a ViT"),
        "heads that do not divide": (all_of(sound, openclip(7)), "do not divide into 7 heads"),
        "heads of infinity": (all_of(beside(), openclip(float("inf"))), NO_OPENCLIP),
        "heads of NaN": (all_of(beside(), openclip(float("nan"))), NO_OPENCLIP),
        "heads without width": (all_of(beside(), openclip(8, 0)), NO_OPENCLIP),
        "width is text of two lines": (all_of(beside(), openclip("8\n8")), NO_OPENCLIP),
        "OpenCLIP's of a gigabyte": (all_of(beside(), sparse(OPENCLIP)), NO_OPENCLIP),
        "OpenCLIP's is a list": (all_of(beside(), text(OPENCLIP, [1])), NO_OPENCLIP),
        "OpenCLIP's is deep": (all_of(beside(), text(OPENCLIP, '{"model_cfg":' * 100_000)), NO_OPENCLIP),
        "OpenCLIP's has no model": (all_of(beside(), text(OPENCLIP, {"model_cfg": None})), NO_OPENCLIP),
    },
    read_geometry: {
        "config of a gigabyte": (sparse(CONFIG), f"{NO_CONFIG} (larger than 4,194,304 bytes)"),
        "config of 5 MB of spaces": (text(CONFIG, " " * (5 << 20)), f"{NO_CONFIG} (larger than 4,194,304 bytes)"),
        "config is a pipe": (pipe(CONFIG), f"{NO_CONFIG} (not a regular file)"),
        "config never ends": (link(CONFIG, "/dev/zero"), f"{NO_CONFIG} (not a regular file)"),
        "config is a directory": (directory(CONFIG), f"{NO_CONFIG} (not a regular file)"),
        "config links to itself": (link(CONFIG, CONFIG), "config.json: "),
        "config links to a secret": (link(CONFIG, "../secret"), NO_CONFIG),
        "config with a key twice": (text(CONFIG, '{"hidden_size": 8, "hidden_size": 9}'), "a name stands twice"),
        "number of 5000 digits": (text(CONFIG, f'{{"hidden_size": {"9" * 5000}}}'), NO_CONFIG),
        "lists in lists": (text(CONFIG, "[" * 100_000), NO_CONFIG),
        "model of two lines": (text(CONFIG, {"model_type": "a\nb"}), "configuration of a 'a\\nb' model"),
        "model of a megabyte": (text(CONFIG, {"model_type": "a" * (1 << 20)}), "configuration of a 'aa"),
        "width of 10^18": (vision(hidden_size=10**18), "hidden_size: input should be less than or equal to 100000"),
        "layers of 10^9": (vision(num_hidden_layers=10**9), "num_hidden_layers: input should be less than"),
        "layers of 10^4000": (vision(num_hidden_layers=10**4000), "num_hidden_layers: "),
        "image of 2^40": (vision(image_size=1 << 40), "image_size: input should be less than"),
        "patch below zero": (vision(patch_size=-16), "patch_size: input should be greater than 0"),
        "no heads": (vision(num_attention_heads=0), "num_attention_heads: input should be greater than 0"),
        "epsilon is NaN": (vision(layer_norm_eps=float("nan")), "layer_norm_eps: "),
        "epsilon is infinite": (vision(layer_norm_eps=float("inf")), "layer_norm_eps: input should be less than 1"),
        "epsilon below zero": (vision(layer_norm_eps=-1e-5), "layer_norm_eps: input should be greater"),
        "width is infinite": (vision(hidden_size=float("inf")), "hidden_size: input should be a finite number"),
    },
    open_locked: {
        "lock of a gigabyte": (sparse("clipfuse.lock"), NO_LOCK),
        "lock is a pipe": (pipe("clipfuse.lock"), NO_LOCK),
        "lock is a directory": (directory("clipfuse.lock"), NO_LOCK),
        "lock is deep": (text("clipfuse.lock", '{"opened":' * 100_000), NO_LOCK),
        "reference is a list": (locked(ref=["model"]), NO_LOCK),
        "kind is a mapping": (locked(kind={}), NO_LOCK),
        "hash is a number": (locked(files={SAFE: 5}), NO_LOCK),
        "revision is a number": (locked(revision=5), NO_LOCK),
        "revision of a megabyte": (locked(revision="a" * (1 << 20)), NO_LOCK),
        "revision of two lines": (locked(revision="a\nb"), NO_LOCK),
        "schema is NaN": (text("clipfuse.lock", '{"schema": NaN, "opened": 3}'), NO_LOCK),
        "schema of 10^4000": (text("clipfuse.lock", {"schema": 10**4000, "opened": []}), "is newer than this clipfuse"),
    },
    open_pool: {
        "tag of a call": (text("pool.yaml", "models: !!python/object/apply:os.system ['touch ran']"), "is refused"),
        "tag of an object": (text("pool.yaml", "models: !!python/object/new:os.system ['touch ran']"), "is refused"),
        "tag of a function": (text("pool.yaml", "models: !!python/name:os.system"), "is refused"),
        "tag of a module": (text("pool.yaml", "models: !!python/module:antigravity"), "is refused"),
        "a laugh in its own middle": (text("pool.yaml", "models: &m [*m, *m]"), "more than 200,000 values"),
        "lists in lists in YAML": (text("pool.yaml", "models: " + "[" * 500), "not YAML: "),
        "5 MB of YAML": (text("pool.yaml", " " * (5 << 20)), "a configuration takes at most"),
        "YAML that names itself": (text("pool.yaml", "models: ${models}"), "Recursive interpolation"),
        "YAML of the environment": (text("pool.yaml", "models: ${oc.env:HOME}"), "interpolate only inside itself"),
        "YAML is a pipe": (pipe("pool.yaml"), "no such file"),
        "YAML never ends": (link("pool.yaml", "/dev/zero"), "no such file"),
        "10^5 experts": (text("pool.yaml", "models:\n" + "- {name: e, path: p}\n" * 10**5), "takes at most"),
        "lists 10,000 deep": (text("pool.yaml", "models: " + "[" * 10_000), "nested more than 50 deep"),
        "number to the base 60": (text("pool.yaml", "models: 1" + ":1" * 100_000), "a number of many digits"),
        "fraction to the base 60": (text("pool.yaml", "models: 1" + ":1" * 3000 + ".5"), "a number of many digits"),
        "number of 100,000 bits": (text("pool.yaml", "models: 0b" + "1" * 100_000), "a number of many digits"),
        "a laugh by reference": (text("pool.yaml", LAUGH), "refer to what refers to more"),
        "YAML is a directory": (directory("pool.yaml"), "this folder is no pool"),
    },
    folder_pool: {
        "folders link to themselves": (all_of(link("a", "a"), link("b", "..")), "this folder is no pool"),
        "weights of experts are pipes": (
            all_of(directory("a"), pipe("a/finetuned.pt"), pipe("zeroshot.pt")),
            "this folder is no pool",
        ),
    },
}
CASES = [
    pytest.param(read, write, said, id=case) for read, cases in ZOO.items() for case, (write, said) in cases.items()
]


@pytest.mark.parametrize(("read", "write", "said"), CASES)
def test_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object], write: Write, said: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("the word is xyzzy, and it is long enough to be the start of a file of weights\n")
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder)
    before = everything(tmp_path)
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(ClipfuseError) as caught:
            read(folder)
        took, cost = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    told = str(caught.value)
    assert said in told
    assert told.isprintable()
    assert len(told) < 1000
    assert "xyzzy" not in told
    assert took < 2
    assert cost < 80 << 20
    assert everything(tmp_path) == before


def everything(root: Path) -> dict[str, object]:
    """Size and time of all that is below a folder, links not followed; of folders that they are there."""
    found = {str(path.relative_to(root)): (path, path.lstat()) for path in root.rglob("*")}
    return {name: path.is_dir() or (stat.st_size, stat.st_mtime_ns) for name, (path, stat) in found.items()}


@pytest.mark.parametrize(
    "ref", ["a\nb", "./a\0b", "~x\0", "\x1b[31m", "./" + "n" * 5000, "n" * 5000, "pkg://a\nb/c", "\ud800"]
)
def test_odd_references(ref: str):
    with pytest.raises(ClipfuseError, match="is neither a path nor a hub id$") as caught:
        locate(ref)
    assert str(caught.value).isprintable()


def test_many_experts_take_linear_time():
    began = time.process_time()
    HuggingFaceClipVisionPool.from_tree({"models": [{"name": f"e{n}", "path": "p"} for n in range(20_000)]})
    assert time.process_time() - began < 2


def test_names_never_become_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither experts' names nor, behind a prefix that is known, tensors'."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    models = {"_pretrained_": vision_model(0), "../../ran": vision_model(1), "/tmp/ran": vision_model(2)}
    clipfuse.merge(models, "simple_average").save("merged")
    climbing = vision_model(0).state_dict() | {"encoder.layers.0/../../../ran": vision_model(0).state_dict()[BIAS]}
    Path("model").mkdir()
    save_file(prefixed(climbing), Path("model", SAFE))
    Path("model", CONFIG).write_text(json.dumps(SMALL.to_config()))
    with suppress(ClipfuseError):
        convert("model", "converted", "hf")
    assert not set(os.listdir()) - {"merged", "model", "converted"}
    assert os.listdir(tmp_path) == ["a"]
    assert not Path("/tmp/ran").exists()
