"""YAML, presets, overrides and FusionBench's words."""

from pathlib import Path

import pytest

from clipfuse.config.fusionbench import translate
from clipfuse.config.overrides import apply_overrides
from clipfuse.config.presets import load_preset, presets
from clipfuse.config.read import parse_yaml, read_yaml
from clipfuse.errors import ClipfuseError, ConfigError
from clipfuse.pool import HuggingFaceClipVisionPool

TA8 = """type: huggingface_clip_vision
models:
  - name: _pretrained_
    path: openai/clip-vit-base-patch32
  - name: sun397
    path: tanganke/clip-vit-base-patch32_sun397
  - name: stanford_cars
    path: tanganke/clip-vit-base-patch32_stanford-cars
  - name: resisc45
    path: tanganke/clip-vit-base-patch32_resisc45
  - name: eurosat
    path: tanganke/clip-vit-base-patch32_eurosat
  - name: svhn
    path: tanganke/clip-vit-base-patch32_svhn
  - name: gtsrb
    path: tanganke/clip-vit-base-patch32_gtsrb
  - name: mnist
    path: tanganke/clip-vit-base-patch32_mnist
  - name: dtd
    path: tanganke/clip-vit-base-patch32_dtd
"""


def test_the_field_pool_ships_byte_for_byte():
    assert presets("modelpool")["clip-vit-base-patch32_TA8"].read_text() == TA8


@pytest.mark.parametrize("arch", ["base-patch16", "large-patch14"])
def test_the_other_architectures_are_the_same_file(arch: str):
    assert presets("modelpool")[f"clip-vit-{arch}_TA8"].read_text() == TA8.replace("base-patch32", arch)


def test_the_field_pool_loads_from_any_path_and_from_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shipped = HuggingFaceClipVisionPool.from_yaml("clip-vit-base-patch32_TA8").config
    assert len(shipped.models) == 9
    (tmp_path / "any.yaml").write_text(TA8)
    assert HuggingFaceClipVisionPool.from_yaml(tmp_path / "any.yaml").config == shipped
    (tmp_path / "config/modelpool").mkdir(parents=True)
    (tmp_path / "config/modelpool/mine.yaml").write_text(TA8)
    monkeypatch.chdir(tmp_path)
    assert HuggingFaceClipVisionPool.from_yaml("mine").config == shipped
    assert apply_overrides({}, ["modelpool=mine"])["modelpool"] == read_yaml(tmp_path / "any.yaml")


@pytest.mark.parametrize("name", [name for group in ("modelpool", "taskpool") for name in presets(group)])
def test_every_preset_is_read(name: str):
    group = "modelpool" if name in presets("modelpool") else "taskpool"
    assert load_preset(group, name)["type"] in ("huggingface_clip_vision", "clip_vit_classification")


def overridden(*words: str) -> dict:
    return apply_overrides({}, ["modelpool=clip-vit-base-patch32_TA8", "method=task_arithmetic", *words])


def test_overrides_by_index_and_by_name():
    tree = overridden("modelpool.models.0.path=./a", "modelpool.models.sun397.path=./b", "method.scaling_factor=1e-1")
    assert tree["modelpool"]["models"][0] == {"name": "_pretrained_", "path": "./a"}
    assert tree["modelpool"]["models"][1] == {"name": "sun397", "path": "./b"}
    assert tree["method"] == {"name": "task_arithmetic", "scaling_factor": 0.1}


def test_override_order_removal_and_lists():
    tree = overridden("method.scaling_factor=0.1,0.2", "seed=3", "edits=[dare]", "edits.dare=null", "~seed")
    assert tree["method"]["scaling_factor"] == [0.1, 0.2]
    assert "seed" not in tree
    assert overridden("method.weights={sun397: 1.0}")["method"]["weights"] == {"sun397": 1.0}


def test_choices_come_before_keys_whatever_the_order():
    words = ["modelpool.models.dtd.path=./x", "modelpool=clip-vit-base-patch32_TA8"]
    assert apply_overrides({}, words)["modelpool"]["models"][8]["path"] == "./x"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["modelpool.models.sun39.path=x"], "did you mean 'sun397'"),
        (["modelpool.models.9.path=x"], "has 9 members"),
        (["modelpool=clip-vit-base-patch32_TA9"], "did you mean 'clip-vit-base-patch32_TA8'"),
        (["modelpool=./none.yaml"], "no such file"),
        (["scaling_factor"], "takes key=value"),
        (["~method.nothing"], "nothing"),
        (["method.a=[1"], "method.a=[1"),
    ],
)
def test_wrong_words_are_named(words: list[str], says: str):
    with pytest.raises(ConfigError) as caught:
        overridden(*words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: !!python/object/apply:os.system [ls]", "refused"),
        ("a: 1\na: 2", "stands twice"),
        ("- 1", "keys and values"),
        ("", "holds nothing"),
        ("a: [1", "not YAML"),
        ("a: ${oc.env:HOME}", "interpolate only inside itself"),
        ("a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\n"
         "d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]\n"
         "f: [*e, *e, *e, *e, *e, *e, *e, *e, *e]", "aliases"),
        ("? [1, 2]\n: 3", "a key must be a word"),
    ],
)  # fmt: skip
def test_hostile_yaml_is_refused_in_one_line(text: str, says: str):
    with pytest.raises(ConfigError, match="^here") as caught:
        parse_yaml(text, "here")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_must_be_utf8(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_bytes("name: Größe".encode("latin-1"))
    with pytest.raises(ConfigError, match="byte 8 is not UTF-8"):
        read_yaml(path)


def test_numbers_with_exponents_are_numbers():
    assert parse_yaml("a: 1e-5\nb: 3E4\nc: 1_000\nd: '1e-5'", "x") == {"a": 1e-5, "b": 3e4, "c": 1000, "d": "1e-5"}


def test_interpolation_inside_a_file(tmp_path: Path):
    (tmp_path / "p.yaml").write_text(
        "root: /models\ntype: huggingface_clip_vision\nmodels: [{name: a, path: '${root}/a'}]"
    )
    assert load_preset("modelpool", str(tmp_path / "p.yaml"))["models"][0]["path"] == "/models/a"


def test_defaults_lists_are_composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "config/modelpool").mkdir(parents=True)
    (tmp_path / "config/modelpool/mine.yaml").write_text(
        "defaults:\n  - clip-vit-base-patch32_TA8\n  - _self_\nnote: mine\n"
    )
    monkeypatch.chdir(tmp_path)
    tree = load_preset("modelpool", "mine")
    assert tree["note"] == "mine"
    assert len(tree["models"]) == 9


def test_fusionbench_words():
    tree = {
        "method": {"name": "dare/ties_merging", "threshold": 20, "merge_func": "sum", "sparsity_ratio": 0.9},
        "modelpool": {
            "_target_": "fusion_bench.modelpool.CLIPVisionModelPool",
            "_recursive_": False,
            "models": {"_pretrained_": "openai/clip-vit-base-patch32", "a": {"pretrained_model_name_or_path": "x/a"}},
        },
        "taskpool": {"type": "clip_vit_classification", "name": "t", "tasks": [{"name": "sun397", "dataset": {}}], "clip_model": "b/c"},
        "merged_model_save_path": "out",
        "fabric": {"devices": 1},
    }  # fmt: skip
    found, notes = translate(tree)
    assert found["method"] == {"name": "ties_merging", "keep": 0.2, "merge": "sum"}
    assert found["edits"] == [{"name": "dare", "drop": 0.9}]
    assert found["out"] == "out"
    assert "fabric" not in found
    assert found["taskpool"]["base"] == "b/c"
    pool = HuggingFaceClipVisionPool.from_tree(found["modelpool"])
    assert [(m.name, m.path) for m in pool.config.models] == [
        ("_pretrained_", "openai/clip-vit-base-patch32"),
        ("a", "x/a"),
    ]
    assert len(notes) >= 7


def test_fusionbench_constants_that_never_change():
    theirs = {"name": "slerp/slerp", "t": 0.3, "DOT_THRESHOLD": 0.9995, "epsilon": "1e-8"}
    found, notes = translate({"method": theirs})
    assert found["method"] == {"name": "slerp", "t": 0.3}
    assert len(notes) == 3
    other, _ = translate({"method": {**theirs, "DOT_THRESHOLD": 0.9}})
    assert other["method"] == {"name": "slerp", "t": 0.3, "DOT_THRESHOLD": 0.9}, "refused as an unknown key later"
    assert translate({"method": {"name": "linear/linear_interpolation"}})[0]["method"]["name"] == "linear_interpolation"


@pytest.mark.parametrize(
    ("theirs", "method", "edits", "finishes"),
    [
        (
            {"name": "singular_value_calibration/task_arithmetic", "scaling_factor": 0.3, "accelerator": None},
            {"name": "task_arithmetic", "scaling_factor": 0.3},
            None,
            [{"name": "svc", "alpha": 0.1}],
        ),
        (
            {
                "name": "singular_value_calibration/dare_task_arithmetic",
                "alpha": 0.2,
                "base_method": {"_target_": "x", "sparsity_ratio": 0.5, "only_on_linear_weights": False},
            },
            {"name": "task_arithmetic"},
            [{"name": "dare", "drop": 0.5}],
            [{"name": "svc", "alpha": 0.2}],
        ),
        (
            {"name": "singular_value_calibration/task_singular_vector"},
            {"name": "tsv_merging"},
            None,
            [{"name": "svc", "alpha": 1.0}],
        ),
        (
            {"name": "linear/expo", "extrapolation_factor": 0.2},
            {"name": "simple_average"},
            None,
            [{"name": "expo", "alpha": 0.2}],
        ),
    ],
)
def test_fusionbench_finishes(theirs: dict, method: dict, edits: list | None, finishes: list):
    found, notes = translate({"method": theirs})
    assert (found["method"], found.get("edits"), found["finishes"]) == (method, edits, finishes)
    assert "and the finish" in notes[0]


def test_fusionbench_settings_of_edits_and_finishes():
    tree = {
        "method": {"name": "magmax"},
        "edits": [{"name": "magnitude_prune", "prune_ratio": 0.8}],
        "finishes": ["svc", {"name": "expo", "extrapolation_factor": 0.3}],
    }
    found, _ = translate(tree)
    assert found["edits"] == [{"name": "magnitude_prune", "keep": pytest.approx(0.2)}]
    assert found["finishes"] == ["svc", {"name": "expo", "alpha": 0.3}]


def test_fusionbench_words_of_continual_methods():
    theirs = {"name": "dop/dop", "num_steps": 50, "svd_proj_space": "u", "ema_beta": 0.9, "shuffle_order": True}
    theirs |= {"mgda": True, "save_on_every_step": False, "evaluate_on_every_step": True, "seed": None}
    ours = {"name": "dop", "steps": 50, "space": "u", "ema": 0.9, "shuffle": True}
    assert translate({"method": theirs})[0]["method"] == ours
    found, _ = translate({"method": {"name": "opcm/ties_merging", "threshold": 10}})
    assert found["method"] == {"name": "continual_ties", "keep": 0.1}


def test_fusionbench_names_of_presets():
    words = ["modelpool=CLIPVisionModelPool/clip-vit-base-patch32_TA8", "taskpool=clip-vit-classification_TA8"]
    tree = apply_overrides({}, words)
    assert tree["taskpool"]["tasks"][0] == "sun397"
    assert len(tree["modelpool"]["models"]) == 9


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"models": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]}, "the name 'a' stands twice"),
        ({"models": [{"name": "a", "pth": "x"}]}, "did you mean 'path'"),
        ({"models": [{"name": 1, "path": "x"}]}, "valid string (found 1)"),
        ({"type": "flux", "models": []}, "huggingface_clip_vision"),
        ({}, "models: is required"),
    ],
)
def test_pools_are_checked(tree: dict, says: str):
    with pytest.raises(ClipfuseError) as caught:
        HuggingFaceClipVisionPool.from_tree(tree)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_run_presets_compose_their_groups():
    tree = load_preset("run", "tiny")
    assert tree["modelpool"] == load_preset("modelpool", "tiny_TA8")
    assert tree["taskpool"] == load_preset("taskpool", "tiny_TA8")
    assert tree["method"]["name"] == "task_arithmetic"


def test_a_run_file_composes_from_the_user_and_from_the_shipped_presets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for group in ("run", "modelpool"):
        (tmp_path / "config" / group).mkdir(parents=True)
    (tmp_path / "config/modelpool/mine.yaml").write_text(TA8)
    text = (
        "# @package _global_\ndefaults:\n  - /modelpool: mine\n  - /taskpool: TA8\n  - _self_\nmethod: {name: magmax}\n"
    )
    (tmp_path / "config/run/all.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    tree = load_preset("run", "all")
    assert len(tree["modelpool"]["models"]) == 9
    assert tree["taskpool"]["tasks"][0] == "sun397"
    (tmp_path / "config/run/bad.yaml").write_text(text.replace("mine", "theirs"))
    with pytest.raises(ConfigError, match="theirs") as caught:
        load_preset("run", "bad")
    assert "\n" not in str(caught.value)


def test_methods_that_look_at_data_have_fusionbench_s_words():
    theirs = {"name": "clip_layer_wise_adamerging_surgery", "weights": None, "optimizer": "adam", "lr": 1e-3,
              "init_values": 0.3, "clamp_weights": False, "tie_weights": True, "batch_size": 8, "max_steps": 100,
              "eval_iterations": 200, "surgery_steps": 50}  # fmt: skip
    found, notes = translate({"method": theirs})
    wanted = {"name": "adamerging", "weights": None, "lr": 1e-3, "init": 0.3, "batch": 8, "steps": 100}
    assert found == {"method": wanted, "after": {"name": "surgery", "steps": 50}}
    assert any("learns on the test images" in note for note in notes)
    found, _ = translate(
        {"method": {"name": "regmean/clip_regmean", "num_regmean_examples": 64, "weight_transpose": True}}
    )
    assert found["method"] == {"name": "regmean", "images": 64}
    found, _ = translate({"method": {"name": "clip_concrete_task_arithmetic", "eval_mask_type": "continuous"}})
    assert found["method"] == {"name": "concrete", "mask": "sample"}
    hard = {
        "name": "fw_merging/fw_hard",
        "step_size": 0.1,
        "scaling_factor": 0.3,
        "max_iters": 10,
        "granularity": "task",
    }
    found, _ = translate({"method": hard})
    assert found["method"].pop("step_size") == pytest.approx(0.03)
    assert found["method"] == {"name": "fw_merging", "score": "cosine", "decay": True, "init": 0.3, "steps": 10,
                               "granularity": "task"}  # fmt: skip
    other, _ = translate({"method": {"name": "regmean/clip_regmean", "weight_transpose": False}})
    assert other["method"]["weight_transpose"] is False, "what ours does not do is left for the check to refuse"
