"""FusionBench's model pools and task pools (0.1 and 0.2) in our words.

A `_target_` is a word in a table, never something to import.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clipfuse.errors import ConfigError, unknown

Tree = dict[str, Any]
PRETRAINED = "_pretrained_"
MISSING = "???"
"""What Hydra writes for a value that is still to be given."""
COMPOSED = "_defaults_"
"""Key of lines about what a `defaults:` list of FusionBench was read as, which become notes."""

TYPES: dict[str, dict[str, str]] = {
    "modelpool": dict.fromkeys(
        (
            "fusion_bench.modelpool.CLIPVisionModelPool",
            "fusion_bench.modelpool.clip_vision.CLIPVisionModelPool",
            "fusion_bench.modelpool.clip_vision.modelpool.CLIPVisionModelPool",
            "CLIPVisionModelPool",
        ),
        "huggingface_clip_vision",
    ),
    "taskpool": dict.fromkeys(
        (
            "fusion_bench.taskpool.CLIPVisionModelTaskPool",
            "fusion_bench.taskpool.clip_vision.CLIPVisionModelTaskPool",
            "fusion_bench.taskpool.clip_vision.taskpool.CLIPVisionModelTaskPool",
            "CLIPVisionModelTaskPool",
        ),
        "clip_vit_classification",
    ),
}
"""Group → their `_target_` or type → our type."""

IGNORED: dict[str, tuple[str, ...]] = {
    "modelpool": (
        *("_recursive_", "_usage_", "_version_", "processor", "dtype", "devices", "dataset_type", "corruption"),
        *("tta_datasets", "train_datasets", "val_datasets", "test_datasets"),
    ),
    "taskpool": (
        *("_recursive_", "_usage_", "_version_", "name", "dataset_type", "batch_size", "num_workers", "devices"),
        *("dtype", "fast_dev_run", "processor", "data_processor", "dataloader_kwargs", "layer_wise_feature_save_path"),
        *("layer_wise_feature_first_token_only", "layer_wise_feature_max_num"),
    ),
}
"""Group → keys that have no meaning here; what is ignored is named."""

WHOLE = {"pretrained_model_name_or_path": "path", "revision": "revision", "torch_dtype": None, "dtype": None}
PARTS = {"return_vision_model": None, "return_vison_model": None}
ADAPTER = {"peft_name": "path", "base_model_name": "base_model_name", "merge_and_unload": None, **PARTS}
LOADERS: dict[str, Mapping[str, str | None]] = {
    "transformers.CLIPVisionModel.from_pretrained": WHOLE,
    "fusion_bench.models.linearized.vision_model.load_fft_vision_model_hf": {"model_name": "path", **PARTS},
    "fusion_bench.models.linearized.vision_model.load_lora_vision_model_hf": ADAPTER,
    "fusion_bench.models.linearized.vision_model.load_l_lora_vision_model_hf": ADAPTER,
}
"""`_target_` of a model → its arguments → our keys, None where we have none."""

CLIP = ("transformers.CLIPModel.from_pretrained",)
DATASETS = ("datasets.load_dataset", "fusion_bench.dataset.fer2013.load_fer2013")
PART_OF_TRAIN = "fusion_bench.utils.data.train_validation_split"
TEST_SPLITS = {"food101": "validation", "tiny-imagenet": "valid"}
"""What the test split of a data set is called, where not `test`."""


def translate_modelpool(tree: Tree, notes: list[str]) -> Tree:
    """A model pool's tree in our words. Raises ConfigError: what no table knows, or what is still to be given."""
    pool = translate_group("modelpool", tree, notes)
    if pool.get("platform") == "huggingface":
        pool["platform"] = "hf"
        notes.append("modelpool.platform=huggingface is read as hf")
    if isinstance(pool.get("models"), dict):
        pool["models"] = over_their_base(
            {name: translate_member(f"modelpool.models.{name}", model, notes) for name, model in pool["models"].items()}
        )
    refuse_missing("modelpool", pool)
    return pool


def translate_member(place: str, model: Any, notes: list[str]) -> Any:
    """A model in our words; an adapter keeps its `base_model_name`."""
    if not isinstance(model, dict) or not model.keys() & {"_target_", "pretrained_model_name_or_path"}:
        return model
    theirs = word(place, model, LOADERS) or next(iter(LOADERS))
    arguments = LOADERS[theirs]
    ignored = [key for key in model if key in arguments and arguments[key] is None]
    ours: Tree = {"kind": "lora"} if arguments is ADAPTER else {}
    ours |= {arguments.get(key) or key: value for key, value in model.items() if key not in (*ignored, "_target_")}
    read_as = ", ".join(f"{key}={value}" for key, value in ours.items())
    notes.append(f"{place}: {theirs} is read as {read_as}" + "".join(f"; {key} is ignored" for key in ignored))
    return ours


def over_their_base(models: Tree) -> Tree:
    """The models without the base that adapters name: it is the pool's own, or a local copy of it is, or it becomes it.

    Raises:
        ConfigError: an adapter over another base than the pool's.
    """
    key = "base_model_name"
    bases = {name: model[key] for name, model in models.items() if isinstance(model, dict) and key in model}
    if bases and PRETRAINED not in models:
        models = {PRETRAINED: next(iter(bases.values())), **models}
    own = models.get(PRETRAINED)
    own = str(own.get("path") if isinstance(own, dict) else own).partition("@")[0]
    for name, base in bases.items():
        if base != own and not own.startswith((".", "/", "~")):
            raise ConfigError(f"modelpool.models.{name}: is an adapter over {base}; the pool's {PRETRAINED} is {own}")
        models[name] = {other: value for other, value in models[name].items() if other != key}
    return models


def translate_taskpool(tree: Tree, notes: list[str]) -> Tree:
    """A task pool's tree in our words. Raises ConfigError: what no table knows, or what is still to be given."""
    pool = translate_group("taskpool", tree, notes)
    refuse_missing("taskpool", pool)
    tests = pool.get("test_datasets")
    if isinstance(tests, dict | None):
        pool.pop("test_datasets", None)
    if isinstance(tests, dict):
        if "tasks" in pool:
            raise ConfigError("taskpool: tasks and test_datasets both list what is scored; give one of them")
        pool["tasks"] = list(tests)
        for name, dataset in tests.items():
            check_test_split(f"taskpool.test_datasets.{name}", name, dataset)
        told = "taskpool.test_datasets is read as taskpool.tasks"
        notes.append(f"{told}={','.join(map(str, tests))}; their data sets are those of the catalogue")
    elif isinstance(tasks := pool.get("tasks"), Sequence) and any(isinstance(task, dict) for task in tasks):
        for task in tasks:
            if isinstance(task, dict):
                check_test_split(f"taskpool.tasks.{task.get('name')}", task.get("name"), task.get("dataset"))
        pool["tasks"] = [task.get("name") if isinstance(task, dict) else task for task in tasks]
        notes.append("taskpool.tasks is read as names of tasks; their data sets are those of the catalogue")
    named = {key: base_name(key, pool.pop(key)) for key in ("clip_model", "base_model") if key in pool}
    bases = {key: base for key, base in [*named.items(), ("base", pool.get("base"))] if base is not None}
    if len(set(map(str, bases.values()))) > 1:
        raise ConfigError(f"taskpool: {' and '.join(f'{k} is {v}' for k, v in bases.items())}; give one of them")
    notes += [f"taskpool.{key} is read as taskpool.base" for key in named]
    return pool | ({"base": next(iter(bases.values()))} if bases else {})


def check_test_split(place: str, task: Any, dataset: Any) -> None:
    """Refuse a data set that is built by what no table knows, and any other split of it than the test split."""
    split = None
    while isinstance(dataset, dict):
        split = dataset.get("split", split)
        if word(place, dataset, (*DATASETS, PART_OF_TRAIN)) == PART_OF_TRAIN:
            split = dataset.get("return_split", "train")
            break
        dataset = dataset.get("object")
    if split not in (None, "test", TEST_SPLITS.get(str(task))):
        takes = "evaluate takes split=val" if split in ("val", "validation") else "corruption= is for corrupted images"
        raise ConfigError(f"{place}: is the split {split!r}; a task pool is scored on test splits ({takes})")


def base_name(key: str, model: Any) -> Any:
    """The hub id or path of a `clip_model`, which may be told by how it is loaded."""
    if not isinstance(model, dict):
        return model
    word(f"taskpool.{key}", model, CLIP)
    path, revision = model.get("pretrained_model_name_or_path"), model.get("revision")
    return f"{path}@{revision}" if path and revision else path


def spent_keys(group: str, tree: Tree) -> tuple[str, ...]:
    """Keys that say nothing more once a file's `${…}` are filled in.

    A model pool's `base_model` is only there for these. A task pool's `clip_model` that is `${…base_model}` follows it:
    `taskpool.base_model=…` is to be another for both.
    """
    if group == "modelpool":
        return ("base_model",)
    told = base_name("clip_model", tree.get("clip_model")) if group == "taskpool" else None
    return ("clip_model",) if re.fullmatch(r"\$\{\.*(taskpool\.)?base_model\}", str(told)) else ()


def translate_group(group: str, tree: Tree, notes: list[str]) -> Tree:
    """One group's tree without what has no meaning here; its `_target_` or type in our word."""
    tree = dict(tree)
    if isinstance(tree.get(COMPOSED), list):
        notes += [f"{group}: {line}" for line in tree.pop(COMPOSED)]
    theirs = word(group, tree, TYPES[group]) or tree.get("type")
    if isinstance(theirs, str) and theirs in TYPES[group]:
        tree["type"] = TYPES[group][theirs]
        notes.append(f"{group}: {theirs} is read as {tree['type']}")
        tree.pop("_target_", None)
    for key in IGNORED[group]:
        if key in tree:
            del tree[key]
            notes.append(f"{group}.{key} is ignored")
    return tree


def word(place: str, tree: Mapping[str, Any], known: Mapping[str, Any] | Sequence[str]) -> str | None:
    """The `_target_` that stands there, None if there is none. Raises ConfigError for one that is not `known`."""
    theirs = tree.get("_target_")
    if theirs is not None and str(theirs) not in known:
        raise ConfigError(f"{place}: {unknown('_target_', str(theirs), known)}")
    return theirs


def refuse_missing(place: str, tree: Tree) -> None:
    """Raise ConfigError for what is still to be given."""
    if found := next(missing(tree), None):
        raise ConfigError(f"{place}.{found}: is {MISSING!r}, which stands for a value that is still to be given")


def missing(tree: Any) -> Iterator[str]:
    """Places of values that are still to be given."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if value == MISSING:
            yield str(key)
        yield from (f"{key}.{inside}" for inside in missing(value))
