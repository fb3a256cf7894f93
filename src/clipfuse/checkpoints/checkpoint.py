"""Named tensors of one model, opened lazily under canonical names."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipfuse.checkpoints.json_file import read_json
from clipfuse.checkpoints.layouts import tower_places
from clipfuse.checkpoints.names import PROJECTION
from clipfuse.checkpoints.safetensors_file import SafetensorsFile, TensorSpec
from clipfuse.checkpoints.store import MemoryStore, Store
from clipfuse.checkpoints.torch_file import TorchFile
from clipfuse.errors import CheckpointError

WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
"""Where a folder of the hub keeps its weights, in order of preference."""

MAX_SHARD = 200
"""Characters of a shard's name."""

ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELU": "gelu"}
"""Classes of activations in pickled modules → what a configuration calls them."""


class Checkpoint(Mapping[str, Tensor]):
    """The vision encoder's tensors of one model by canonical name; each is read when it is asked for.

    `source` says in messages where they come from; `files` are the files that were opened. With `is_delta` the
    tensors are those of a task vector, and parameters that it lacks are zero. `projection` is where the projection is
    stored that may be beside the tower; it is no member, see `with_projection`.
    """

    def __init__(
        self,
        places: Mapping[str, tuple[Store, str]],
        source: str,
        files: tuple[Path, ...] = (),
        is_delta: bool = False,
        projection: tuple[Store, str] | None = None,
    ):
        self.places = dict(places)
        self.projection = projection
        self.source = source
        self.files = files
        self.is_delta = is_delta
        self.hints: Mapping[str, Any] = {}
        """What the file says of the geometry besides the shapes."""

    def __getitem__(self, name: str) -> Tensor:
        store, stored = self.places[name]
        return store.read(stored)

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def spec(self, name: str) -> TensorSpec:
        """Shape, dtype and bytes of a tensor, without reading it."""
        store, stored = self.places[name]
        return store.specs[stored]

    def read_into(self, name: str, start: int, room: memoryview) -> bool:
        """Copy a tensor's bytes from element `start` on, as many as `room` has; False if `self[name]` costs less."""
        store, stored = self.places[name]
        return store.read_into(stored, start, room)

    def release(self, name: str) -> None:
        """Let go of what was mapped for a tensor that will not be needed soon."""
        store, stored = self.places[name]
        store.release(stored)

    def with_projection(self, instead: tuple[Store, str] | None = None) -> "Checkpoint":
        """The same with the projection as one more parameter: its own, else that which is stored at `instead`."""
        found = Checkpoint(self.places, self.source, self.files, self.is_delta, self.projection)
        if at := self.projection or instead:
            found.places[PROJECTION] = at
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(self.spec(name).nbytes for name in self)


def from_memory(weights: nn.Module | Mapping[str, Any], source: str) -> Checkpoint:
    """A checkpoint over a module's or a state dict's own tensors; they are read, never changed.

    Raises:
        CheckpointError: a value is not a tensor, or the names are not those of a CLIP vision encoder.
    """
    if isinstance(weights, Checkpoint):
        return weights
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"{source}: is a {type(tensors).__name__}; takes a module or a state dict")
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{source}: {name!r} is a {type(value).__name__}; a state dict holds tensors")
    store: Store = MemoryStore({name: value.detach() for name, value in tensors.items()})
    stored = {name: (store, name) for name in tensors}
    places = tower_places(stored, source)
    return check_floating(Checkpoint(places, source, projection=places.pop(PROJECTION, None)))


def task_vector(tensors: Mapping[str, Tensor], source: str) -> Checkpoint:
    """A delta-native checkpoint over task vectors in memory, by canonical name."""
    store: Store = MemoryStore(tensors)
    return Checkpoint({name: (store, name) for name in tensors}, source, is_delta=True)


def open_checkpoint(folder: Path, source: str, base: Checkpoint | None = None) -> Checkpoint:
    """The vision encoder in a folder, or in a single weights file, whatever library wrote it.

    A LoRA adapter's is a task vector from `base`, which adapters need that store more than low-rank factors.

    Raises:
        CheckpointError: no weights there, or they are damaged, integer, or not a CLIP vision encoder's.
    """
    if (folder / "adapter_config.json").is_file():
        from clipfuse.checkpoints.lora import open_adapter

        return open_adapter(folder, source, base)
    path = weights_file(folder)
    stored, files = open_files(path)
    places = tower_places(stored, str(path))
    found = Checkpoint(places, source, files, projection=places.pop(PROJECTION, None))
    found.hints = hints_of({id(store): store for store, _ in stored.values()}.values())
    return check_floating(found)


def hints_of(stores: Iterable[Store]) -> dict[str, Any]:
    """What whole pickled modules say of a tower's geometry besides the shapes: heads, and the activation's class."""
    found: dict[str, Any] = {}
    for store in stores:
        if isinstance(store, TorchFile):
            told = store.attributes.items()
            heads = {value for name, value in told if "visual." in name and name.endswith("attn.num_heads")}
            names = {name.rsplit(".", 1)[-1] for name in store.classes}
            activations = [ours for theirs, ours in ACTIVATIONS.items() if theirs in names]
            found |= {"num_attention_heads": heads.pop()} if len(heads) == 1 else {}
            found |= {"hidden_act": activations[0]} if len(activations) == 1 else {}
    return found


def weights_file(folder: Path) -> Path:
    """A folder's weights file or index of shards; a file itself. Raises CheckpointError."""
    path = folder if folder.is_file() else next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        models = [str(path) for path in sorted(folder.glob("merged*")) if path.is_dir()]
        hint = f"; it is a run, its model is {' or '.join(models)}" if models else ""
        raise CheckpointError(f"{folder}: holds no weights; looked for {', '.join(WEIGHTS)}{hint}")
    return path


def open_files(path: Path) -> tuple[dict[str, tuple[Store, str]], tuple[Path, ...]]:
    """All tensors of a weights file or index under the names that they have there, and the files. CheckpointError."""
    try:
        files = shards(path) if path.name.endswith(".index.json") else {path: None}
        places: dict[str, tuple[Store, str]] = {}
        for file, expected in files.items():
            store: Store = SafetensorsFile(file) if file.suffix == ".safetensors" else TorchFile(file)
            if missing := [name for name in expected or () if name not in store.specs]:
                raise CheckpointError(f"{file}: lacks {missing[0]!r:.120}, which {path.name} says is in it")
            places |= {name: (store, name) for name in expected or store.specs}
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
    return places, tuple(files)


def check_floating(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint itself. Raises CheckpointError if it holds integers."""
    for name in checkpoint:
        if not checkpoint.spec(name).dtype.is_floating_point:
            where = checkpoint.files[0] if checkpoint.files else checkpoint.source
            raise CheckpointError(f"{where}: {name!r} is {checkpoint.spec(name).dtype}; weights are floating point")
    return checkpoint


def shards(index: Path) -> dict[Path, list[str]]:
    """Shard file → the names it holds, from an index; shards lie beside their index."""
    try:
        weight_map: dict[str, str] = read_json(index)["weight_map"]
        files: dict[Path, list[str]] = {}
        for name, shard in weight_map.items():
            if Path(shard).name != shard or not 0 < len(shard) <= MAX_SHARD or not shard.isprintable():
                raise CheckpointError(f"{index}: shard {shard!r:.80} is not a plain file name")
            files.setdefault(index.parent / shard, []).append(name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{index}: is not an index of shards (weight_map: name → file)") from None
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"{index}: names {missing[0]}, which is not there")
    return files


def common_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype that most of a checkpoint's bytes have."""
    bytes_by_dtype: dict[torch.dtype, int] = {}
    for name in checkpoint:
        spec = checkpoint.spec(name)
        bytes_by_dtype[spec.dtype] = bytes_by_dtype.get(spec.dtype, 0) + spec.nbytes
    return max(bytes_by_dtype, key=bytes_by_dtype.__getitem__)
