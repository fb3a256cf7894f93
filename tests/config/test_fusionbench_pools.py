"""FusionBench's YAML of model pools and task pools, in all its forms."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from clipfuse.config import parse
from clipfuse.config.fusionbench import translate
from clipfuse.config.overrides import apply_overrides, choose
from clipfuse.config.presets import load_preset
from clipfuse.errors import ClipfuseError, ConfigError
from clipfuse.pool import HuggingFaceClipVisionPool
from clipfuse.pool.config import Member, PoolConfig
from clipfuse.run.tasks import find_tasks
from clipfuse.tasks import TaskPoolConfig

B32, B16 = "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16"

OLD_POOL = """
type: huggingface_clip_vision
models:
  - name: _pretrained_
    path: openai/clip-vit-base-patch32
  - name: stanford_cars
    path: tanganke/clip-vit-base-patch32_stanford-cars
  - name: dtd
    path: tanganke/clip-vit-base-patch32_dtd
dtype: float32
devices: 1
dataset_type: huggingface_image_classification
tta_datasets:
  - name: dtd
    dataset: {name: tanganke/dtd, split: test}
train_datasets: null
"""

OLD_TASKS = """
type: clip_vit_classification
name: clip-vit-two-tasks
dataset_type: huggingface_image_classification
tasks:
  - name: stanford_cars
    dataset:
      name: tanganke/stanford_cars
      split: test
  - name: svhn
    dataset:
      type: instantiate
      name: svhn
      object:
        _target_: datasets.load_dataset
        _args_: [svhn, cropped_digits]
        split: test
clip_model: openai/clip-vit-base-patch32
batch_size: 128
num_workers: 16
fast_dev_run: ${fast_dev_run}
"""

POOL = """
_target_: fusion_bench.modelpool.CLIPVisionModelPool
_recursive_: False
_version_: 0.2.33
_usage_: |
  a few words
models:
  _pretrained_: openai/clip-vit-base-patch16
  whole:
    _target_: transformers.CLIPVisionModel.from_pretrained
    pretrained_model_name_or_path: tanganke/clip-vit-base-patch16_sun397
    revision: v1.0
    torch_dtype: float16
  fft:
    _target_: fusion_bench.models.linearized.vision_model.load_fft_vision_model_hf
    model_name: tanganke/clip-vit-base-patch16_dtd
    return_vision_model: false
  lora:
    _target_: fusion_bench.models.linearized.vision_model.load_lora_vision_model_hf
    base_model_name: ${.._pretrained_}
    peft_name: tanganke/clip-vit-base-patch16_gtsrb_lora-16
    merge_and_unload: true
    return_vison_model: false
  l_lora:
    _target_: fusion_bench.models.linearized.vision_model.load_l_lora_vision_model_hf
    base_model_name: openai/clip-vit-base-patch16
    peft_name: tanganke/clip-vit-base-patch16_gtsrb_l-lora-16
  plain: tanganke/clip-vit-base-patch16_mnist
processor:
  _target_: transformers.CLIPProcessor.from_pretrained
  pretrained_model_name_or_path: ${..models._pretrained_}
train_datasets:
  dtd: {_target_: datasets.load_dataset, path: tanganke/dtd, split: train}
test_datasets: null
platform: hf
"""

TASKS = """
_target_: fusion_bench.taskpool.CLIPVisionModelTaskPool
_recursive_: false
test_datasets:
  stanford-cars:
    _target_: datasets.load_dataset
    path: tanganke/stanford_cars
    split: test
  food101: {_target_: datasets.load_dataset, path: ethz/food101, split: validation}
  fer2013: {_target_: fusion_bench.dataset.fer2013.load_fer2013, split: test}
  svhn: {_target_: datasets.load_dataset, _args_: [svhn, cropped_digits], split: test}
  sun397: tanganke/sun397
base_model: openai/clip-vit-base-patch16
clip_model:
  _target_: transformers.CLIPModel.from_pretrained
  pretrained_model_name_or_path: ${..base_model}
processor:
  _target_: transformers.CLIPProcessor.from_pretrained
  pretrained_model_name_or_path: ${..base_model}
data_processor: ${.processor}
dataloader_kwargs:
  batch_size: 128
  shuffle: False
layer_wise_feature_save_path: null
layer_wise_feature_first_token_only: true
layer_wise_feature_max_num: 1000
"""


def written(folder: Path, text: str, name: str = "given.yaml") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def members(folder: Path, text: str, name: str = "given.yaml") -> dict[str, str]:
    """Names and addresses of the pool that a file means; nothing is located for it."""
    pool = HuggingFaceClipVisionPool.from_yaml(written(folder, text, name))
    assert "located" not in vars(pool)
    return {member.name: member.ref for member in pool.config.models}


def suite(folder: Path, text: str, *words: str, name: str = "given.yaml") -> TaskPoolConfig:
    tree = apply_overrides({}, [f"taskpool={written(folder, text, name)}", *words])
    return parse(TaskPoolConfig, translate(tree)[0]["taskpool"], "taskpool")


def notes_of(folder: Path, group: str, text: str) -> list[str]:
    notes = translate({group: choose(group, written(folder, text))})[1]
    assert all("\n" not in note for note in notes)
    return notes


def refused(folder: Path, group: str, text: str) -> str:
    """The one line that a file is refused with."""
    with pytest.raises(ClipfuseError) as caught:
        if group == "modelpool":
            HuggingFaceClipVisionPool.from_yaml(written(folder, text))
        else:
            find_tasks(suite(folder, text))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_old_pool(tmp_path: Path):
    assert members(tmp_path, OLD_POOL) == {
        "_pretrained_": B32,
        "stanford_cars": "tanganke/clip-vit-base-patch32_stanford-cars",
        "dtd": "tanganke/clip-vit-base-patch32_dtd",
    }
    ignored = {"dtype", "devices", "dataset_type", "tta_datasets", "train_datasets"}
    assert set(notes_of(tmp_path, "modelpool", OLD_POOL)) == {f"modelpool.{key} is ignored" for key in ignored}


def test_old_tasks(tmp_path: Path):
    found = suite(tmp_path, OLD_TASKS)
    assert [task.name for task in find_tasks(found)] == ["stanford-cars", "svhn"]
    assert found.base == B32
    assert "taskpool.clip_model is read as taskpool.base" in notes_of(tmp_path, "taskpool", OLD_TASKS)


def test_pool(tmp_path: Path):
    found = HuggingFaceClipVisionPool.from_yaml(written(tmp_path, POOL)).config
    at = "tanganke/clip-vit-base-patch16_"
    assert [(m.name, m.path, m.revision, m.kind) for m in found.models] == [
        ("_pretrained_", B16, None, None),
        ("whole", f"{at}sun397", "v1.0", None),
        ("fft", f"{at}dtd", None, None),
        ("lora", f"{at}gtsrb_lora-16", None, "lora"),
        ("l_lora", f"{at}gtsrb_l-lora-16", None, "lora"),
        ("plain", f"{at}mnist", None, None),
    ]
    assert found.platform == "hf"
    notes = notes_of(tmp_path, "modelpool", POOL)
    assert "modelpool: fusion_bench.modelpool.CLIPVisionModelPool is read as huggingface_clip_vision" in notes
    assert any(note.startswith("modelpool.models.lora: ") and "merge_and_unload is ignored" in note for note in notes)


def test_tasks(tmp_path: Path):
    found = suite(tmp_path, TASKS)
    assert found.tasks == ["stanford-cars", "food101", "fer2013", "svhn", "sun397"]
    assert [task.name for task in find_tasks(found)] == found.tasks
    assert found.base == B16
    told = "taskpool.test_datasets is read as taskpool.tasks=stanford-cars,food101,fer2013,svhn,sun397"
    assert any(note.startswith(told) for note in notes_of(tmp_path, "taskpool", TASKS))


@pytest.mark.parametrize("clip_model", ["${.base_model}", "${taskpool.base_model}", "openai/clip-vit-base-patch16"])
def test_a_clip_model_by_name(tmp_path: Path, clip_model: str):
    text = TASKS.replace(TASKS[TASKS.index("clip_model:") : TASKS.index("processor:")], f"clip_model: {clip_model}\n")
    assert suite(tmp_path, text).base == B16


def test_another_base_model_is_another_clip_model(tmp_path: Path):
    assert suite(tmp_path, TASKS, f"taskpool.base_model={B32}").base == B32


def test_a_base_model_that_only_models_point_to(tmp_path: Path):
    text = "_target_: fusion_bench.modelpool.CLIPVisionModelPool\nbase_model: org/clip\nmodels:\n  _pretrained_:\n"
    text += "    _target_: transformers.CLIPVisionModel.from_pretrained\n"
    text += "    pretrained_model_name_or_path: ${...base_model}\n  a: org/a\n"
    assert members(tmp_path, text) == {"_pretrained_": "org/clip", "a": "org/a"}


def test_adapters_bring_their_base(tmp_path: Path):
    cut = POOL.replace(f"  _pretrained_: {B16}\n", "").replace("${.._pretrained_}", B16)
    text = cut[: cut.index("processor:")]
    assert next(iter(members(tmp_path, text).items())) == ("_pretrained_", B16)
    other = text.replace("l_lora_vision_model_hf\n    base_model_name: openai/clip-vit-base-patch16", "l_lora_vision_model_hf\n    base_model_name: org/other")  # fmt: skip
    assert "l_lora: is an adapter over org/other; the pool's _pretrained_ is openai" in refused(tmp_path, "modelpool", other)  # fmt: skip
    local = POOL.replace(f"  _pretrained_: {B16}", "  _pretrained_: ./copy").replace("${.._pretrained_}", B16)
    assert members(tmp_path, local)["_pretrained_"] == "./copy"


POOL_DEFAULTS = """
defaults:
  - CLIPVisionModelPool@: _template
  - /model/clip-vit@models: clip-vit-base-patch32_TALL20
  - /dataset/image_classification/train@train_datasets: TALL20
  - /dataset/image_classification/test@test_datasets: TALL20
  - _self_
processor:
  _target_: transformers.CLIPProcessor.from_pretrained
  pretrained_model_name_or_path: ${..models._pretrained_}
"""

TASK_DEFAULTS = """
defaults:
  - CLIPVisionModelTaskPool@: _template
  - /dataset/image_classification/test@test_datasets:
      - sun397
      - stanford-cars
base_model: openai/clip-vit-large-patch14
"""


def test_defaults_of_a_pool_that_stands_alone(tmp_path: Path):
    found = members(tmp_path, POOL_DEFAULTS)
    twenty = load_preset("taskpool", "TALL20")["tasks"]
    assert found == {"_pretrained_": B32, **{task: f"tanganke/clip-vit-base-patch32_{task}" for task in twenty}}
    assert list(found)[1:] == twenty
    notes = notes_of(tmp_path, "modelpool", POOL_DEFAULTS)
    assert "modelpool: CLIPVisionModelPool@: _template is read as fusion_bench.modelpool.CLIPVisionModelPool" in notes
    told = f"modelpool: /model/clip-vit@models: clip-vit-base-patch32_TALL20 is read as {B32}, tanganke/"
    assert any(note.startswith(told) and note.endswith(" and 18 more") for note in notes)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("[clip-vit-large-patch14, clip-vit-large-patch14_dtd]", ["_pretrained_", "dtd"]),
        ("clip-vit-large-patch14_rendered-sst2", ["rendered-sst2"]),
        ("clip-vit-large-patch14_TALL10", 11),
        ("clip-vit-large-patch14_eight_tasks", 9),
        ("[clip-vit-large-patch14_eight_tasks, clip-vit-large-patch14_TALL14]", 15),
    ],
)
def test_models_by_name(tmp_path: Path, value: str, names: list[str] | int):
    found = members(tmp_path, f"defaults:\n  - /model/clip-vit@models: {value}\n")
    assert list(found) == names if isinstance(names, list) else len(found) == names
    assert set(found) == set(choose("modelpool", str(tmp_path / "given.yaml"))["models"])
    openai = {path for name, path in found.items() if name == "_pretrained_"}
    assert openai <= {"openai/clip-vit-large-patch14"}
    experts = {name: path for name, path in found.items() if name != "_pretrained_"}
    assert experts == {name: f"tanganke/clip-vit-large-patch14_{name}" for name in experts}


def test_defaults_of_tasks_that_stand_alone(tmp_path: Path):
    found = suite(tmp_path, TASK_DEFAULTS)
    assert (found.tasks, found.base) == (["sun397", "stanford-cars"], "openai/clip-vit-large-patch14")
    eight = TASK_DEFAULTS[: TASK_DEFAULTS.index("\n      - sun397")] + " the_eight_tasks\n"
    assert suite(tmp_path, eight).tasks == load_preset("taskpool", "TA8")["tasks"]
    assert suite(tmp_path, eight).base == B32, "as their template says"


def test_self_says_which_comes_last(tmp_path: Path):
    own, entry = "  - _self_\n", "  - /model/clip-vit@models: [clip-vit-base-patch32, clip-vit-base-patch32_dtd]\n"
    models = "models: {dtd: org/mine, more: org/more}\n"
    assert members(tmp_path, f"defaults:\n{own}{entry}{models}")["dtd"] == "tanganke/clip-vit-base-patch32_dtd"
    for text in (f"defaults:\n{entry}{own}{models}", f"defaults:\n{entry}{models}"):
        assert members(tmp_path, text) == {"_pretrained_": B32, "dtd": "org/mine", "more": "org/more"}
    missing = f"defaults:\n{entry}{own}models: ???\n"
    assert "dtd" in members(tmp_path, missing), "a value still to be given takes nothing away"


def test_overrides_of_what_a_table_composed(tmp_path: Path):
    path = written(tmp_path, POOL_DEFAULTS)
    words = [f"modelpool={path}", "modelpool.models.dtd=./mine", "~modelpool.models.mnist"]
    pool = HuggingFaceClipVisionPool.from_tree(apply_overrides({}, words)["modelpool"])
    assert pool.get_model_config("dtd").path == "./mine"
    assert len(pool) == 19


CHECKOUT: Mapping[str, str] = {
    "modelpool/CLIPVisionModelPool/_template.yaml": (
        "_target_: fusion_bench.modelpool.CLIPVisionModelPool\nmodels: ???\nprocessor: null\n"
    ),
    "taskpool/CLIPVisionModelTaskPool/_template.yaml": (
        "_target_: fusion_bench.taskpool.CLIPVisionModelTaskPool\ntest_datasets: ???\nbase_model: org/clip\n"
        "clip_model:\n  _target_: transformers.CLIPModel.from_pretrained\n"
        "  pretrained_model_name_or_path: ${..base_model}\n"
    ),
    "model/clip-vit/clip-vit-base-patch32_eight_tasks.yaml": "defaults: [one]\n_pretrained_: org/clip\n",
    "model/clip-vit/one.yaml": "dtd: {pretrained_model_name_or_path: org/dtd, revision: v2}\n",
    "dataset/image_classification/test/the_eight_tasks.yaml": (
        "dtd: {_target_: datasets.load_dataset, path: org/dtd, split: test}\n"
    ),
}


def test_in_a_checkout_their_own_files_are_composed(tmp_path: Path):
    for name, text in CHECKOUT.items():
        written(tmp_path, text, name)
    place = "modelpool/CLIPVisionModelPool/it's two, both (2).yaml"
    text = "defaults:\n  - CLIPVisionModelPool@: _template\n  - /model/clip-vit@models: clip-vit-base-patch32_eight_tasks\n"
    assert members(tmp_path, text, place) == {"dtd": "org/dtd@v2", "_pretrained_": "org/clip"}
    entry = "  - /dataset/image_classification/test@test_datasets: the_eight_tasks\n"
    text = f"defaults:\n  - CLIPVisionModelTaskPool@: _template\n{entry}"
    found = suite(tmp_path, text, name="taskpool/CLIPVisionModelTaskPool/one.yaml")
    assert (found.tasks, found.base) == (["dtd"], "org/clip")
    (tmp_path / "modelpool/CLIPVisionModelPool/_template.yaml").unlink()
    assert "tanganke" in members(tmp_path, POOL_DEFAULTS, place)["sun397"], "what lacks a group stands alone"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (POOL.replace("fusion_bench.modelpool.CLIP", "fusion_bench.modelpool.OpenCLIP"), "modelpool: unknown _target_ 'fusion_bench.modelpool.OpenCLIPVisionModelPool'; did you mean 'fusion_bench.modelpool.CLIPVisionModelPool'"),
        (POOL.replace("transformers.CLIPVisionModel.from_pretrained", "os.system"), "modelpool.models.whole: unknown _target_ 'os.system'. Known: fusion_bench.models.linearized"),
        (POOL.replace("torch_dtype", "attn"), "unknown key 'attn'"),
        (POOL.replace("v1.0", "???"), "modelpool.models.whole.revision: is '???'"),
        (POOL.replace("patch16_sun397", "patch16_sun397@v2"), "revision: is v1.0 here and v2 in tanganke"),
        (POOL.replace("{.._pretrained_", "{..none"), "models: Interpolation key 'none' not found; a file may interpolate only inside itself"),
        (POOL.replace("platform: hf", "platform: s3"), "platform: input should be 'hf' or 'modelscope'"),
        (POOL.replace("processor:\n", "processor: !!python/object/apply:os.system\n"), "tag '!!python/object/apply:os.system' is refused"),
        ("_target_: fusion_bench.modelpool.CLIPVisionModelPool\nmodels: ???", "modelpool.models: is '???'"),
        ("defaults:\n  - CLIPVisionModelPool@: _template\n", "modelpool.models: is '???'"),
        ("defaults:\n  - /model/clip-vit@models: clip-vit-base-patch32_sun39\n", "given.yaml: defaults: /model/clip-vit@models: unknown model 'clip-vit-base-patch32_sun39'; did you mean 'clip-vit-base-patch32_sun397'"),
        ("defaults:\n  - /model/clip-vit@models: clip-vit-base-patch32\n  - /model/flan-t5@models: base\n", "given.yaml: defaults: unknown entry '/model/flan-t5@models'"),
        ("defaults:\n  - CLIPVisionModelPool@: _other\n", "unknown template '_other'"),
        ("defaults:\n  - /model/clip-vit@models: clip-vit-base-patch32\n  - 1: x\n", "unknown entry '1'"),
        ("defaults:\n  - /model/clip-vit@models: clip-vit-base-patch32\n  - [x]\n", "unknown entry"),
        ("defaults: 5", "defaults must be a list"),
        ("models: {a: '${b'}", "given.yaml: "),
    ],
)  # fmt: skip
def test_pools_that_are_refused(tmp_path: Path, text: str, says: str):
    assert says in refused(tmp_path, "modelpool", text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TASKS.replace("stanford-cars:", "stanford-car:"), "unknown task 'stanford-car'; did you mean 'stanford-cars'"),
        (TASK_DEFAULTS.replace("- stanford-cars", "- tiny-imagenet"), "unknown task 'tiny-imagenet'"),
        (TASKS.replace("datasets.load_dataset\n", "my.data\n"), "taskpool.test_datasets.stanford-cars: unknown _target_ 'my.data'. Known: datasets.load_dataset"),
        (TASKS.replace("CLIPVisionModelTaskPool", "DummyTaskPool"), "taskpool: unknown _target_ 'fusion_bench.taskpool.DummyTaskPool'"),
        (TASKS.replace("transformers.CLIPModel", "my.Model"), "taskpool.clip_model: unknown _target_ 'my.Model.from_pretrained'"),
        (TASKS.replace("split: test\n", "split: contrast\n", 1), "taskpool.test_datasets.stanford-cars: is the split 'contrast'"),
        (TASK_DEFAULTS.replace("/test@", "/val@"), "sun397: is the split 'val'; a task pool is scored on test splits (evaluate takes split=val)"),
        (OLD_TASKS.replace("        split: test", "        split: train"), "taskpool.tasks.svhn: is the split 'train'"),
        (TASKS.replace("${..base_model}", "org/b", 1), "clip_model is org/b and base_model is openai/clip-vit-base-patch16; give one of them"),
        (TASKS + "tasks: [dtd]", "tasks and test_datasets both list"),
        (TASKS.replace("sun397: tanganke/sun397", "sun397: ???"), "taskpool.test_datasets.sun397: is '???'"),
        ("defaults:\n  - CLIPVisionModelTaskPool@: _template\n", "taskpool.test_datasets: is '???'"),
        (TASKS.replace("base_model: openai/clip-vit-base-patch16", "base_model: ???"), "taskpool.base_model: is '???'"),
    ],
)  # fmt: skip
def test_tasks_that_are_refused(tmp_path: Path, text: str, says: str):
    assert says in refused(tmp_path, "taskpool", text)


def test_a_part_of_the_train_split_is_refused(tmp_path: Path):
    part = "{_target_: fusion_bench.utils.data.train_validation_split, return_split: val, dataset: {split: train}}"
    text = f"_target_: fusion_bench.taskpool.CLIPVisionModelTaskPool\ntest_datasets:\n  dtd: {part}\n"
    assert "taskpool.test_datasets.dtd: is the split 'val'" in refused(tmp_path, "taskpool", text)


@pytest.mark.parametrize("tail", ["clip_vision.CLIPVisionModelPool", "clip_vision.modelpool.CLIPVisionModelPool"])
def test_other_names_of_their_classes(tail: str):
    tree = {"_target_": f"fusion_bench.modelpool.{tail}", "models": {"a": "org/a"}, "platform": "huggingface"}
    assert HuggingFaceClipVisionPool.from_tree(tree).config.platform == "hf"


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("modelpool=CLIPVisionModelPool/clip-vit-base-patch16_TALL20_model_only", "clip-vit-base-patch16_TALL20"),
        ("modelpool=CLIPVisionModelPool/clip-vit-base-patch16_TA8_lora", "clip-vit-base-patch16_TA8_lora"),
        ("taskpool=CLIPVisionModelTaskPool/clip-vit-classification_TA8_L14", "TA8"),
        ("taskpool=clip-vit-classification_TALL14", "TALL14"),
    ],
)
def test_their_names_of_presets(word: str, ours: str):
    group = word.partition("=")[0]
    assert apply_overrides({}, [word])[group] == load_preset(group, ours)


def test_members():
    listed = [{"name": "a", "path": "org/a"}, {"name": "b", "path": "org/b", "revision": "main", "kind": "linearised"}]
    found = parse(PoolConfig, {"models": listed, "platform": "modelscope"}, "pool")
    assert [member.ref for member in found.models] == ["org/a", "org/b@main"]
    mapped = {"a": "org/a", "b": {"path": "org/b", "revision": "main", "kind": "linearised"}}
    assert parse(PoolConfig, {"models": mapped, "platform": "modelscope"}, "pool") == found
    assert parse(PoolConfig, found.model_dump(), "pool") == found
    twice = parse(Member, {"name": "a", "path": "org/a@v1", "revision": "v1", "platform": "hf"}, "member")
    assert twice.ref == "org/a@v1"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"path": "org/a@v1", "revision": "v2"}, "pool.models.0: revision: is v2 here and v1 in org/a@v1; give one"),
        ({"path": "./a", "revision": "v2"}, "pool.models.0: revision: ./a is a path of this machine"),
        ({"path": "org/a", "revision": "a b"}, "pool.models.0.revision: "),
        ({"path": "org/a", "kind": "lorra"}, "'full', 'lora' or 'linearised' (found 'lorra')"),
        ({"path": "org/a", "platform": "s3"}, "'hf' or 'modelscope' (found 's3')"),
        ({"path": "org/a", "revison": "v2"}, "did you mean 'revision'"),
    ],
)
def test_members_that_are_refused(wrong: dict, says: str):
    with pytest.raises(ConfigError) as caught:
        parse(PoolConfig, {"models": {"a": wrong}}, "pool")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
