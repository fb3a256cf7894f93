"""Published figures: the data are whole, and only comparable ones come beside a run's own."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from clipfuse.fusion.registry import find
from clipfuse.report.published import (
    BACKBONES,
    TITLES,
    backbone_of,
    canonical,
    column_order,
    column_title,
    field_order,
    figures,
    method_key,
    published_rows,
    suite_tasks,
)

TA8 = ["sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"]
EXPERTS = [name.replace("-", "_") for name in TA8]
EXP1 = ["sun397", "stanford_cars", "resisc45", "dtd", "svhn", "gtsrb"]


def test_every_published_model_is_whole():
    models = defaultdict(dict)
    for f in figures():
        assert f.task not in models[f.backbone, f.suite, f.method], f
        models[f.backbone, f.suite, f.method][f.task] = f.accuracy
    assert len(figures()) == 952
    for (backbone, suite, method), found in models.items():
        average = found.pop("average", None)
        assert set(found) == set(suite_tasks(suite)), (backbone, suite, method)
        assert all(1 < accuracy < 100 for accuracy in found.values())
        if average is not None:
            assert average == pytest.approx(sum(found.values()) / len(found), abs=0.1), (backbone, suite, method)


def test_a_key_means_one_model_but_for_finer_digits():
    titles = defaultdict(set)
    for f in figures():
        titles[f.backbone, f.suite, f.method_key].add(f.method)
    for (_, _, key), names in titles.items():
        extra = {name for name in names if name.endswith("(six digits)")}
        assert len(names - extra) == 1, key
    digits = {(f.method_key, f.task): f.accuracy for f in figures() if f.method.endswith("(six digits)")}
    coarse = {(f.method_key, f.task): f.accuracy for f in figures() if (f.backbone, f.suite) == ("ViT-B/32", "TA8")
              and not f.method.endswith("(six digits)")}  # fmt: skip
    assert len(digits) == 16
    assert all(coarse[place] == pytest.approx(accuracy, abs=0.051) for place, accuracy in digits.items())


def test_figures_have_plain_characters_and_sources():
    assert all(f.source and f.source == f.source.strip() for f in figures())
    assert not {f.method for f in figures() if "‑" in f.method or f.method != f.method.strip()}
    assert set(BACKBONES.values()) < {f.backbone for f in figures()}


def test_the_order_and_the_titles_are_those_of_the_field():
    assert list(TITLES) == list(column_order())
    assert list(suite_tasks("TA8")) == TA8
    for suite in ("TA8", "TALL14"):
        assert column_order()[: len(suite_tasks(suite))] == suite_tasks(suite)
    assert field_order(["mine", "dtd", "Stanford_Cars", "a", "rendered-sst2", "sun397"]) == [
        "sun397", "Stanford_Cars", "dtd", "rendered-sst2", "mine", "a",
    ]  # fmt: skip
    assert [column_title(name) for name in ("stanford_cars", "cars", "emnist_letters", "tiny-signs")] == [
        "Cars", "Cars", "EMNIST", "tiny-signs",
    ]  # fmt: skip
    assert canonical("tiny-signs") is None


def test_a_users_suite_of_the_same_name_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "config/taskpool").mkdir(parents=True)
    (tmp_path / "config/taskpool/TA8.yaml").write_text("tasks: [mnist]\n")
    monkeypatch.chdir(tmp_path)
    suite_tasks.cache_clear()
    assert list(suite_tasks("TA8")) == TA8


def test_rows_of_the_eight_tasks():
    base, tuned, ta = published_rows("ViT-B/32", TA8, ["pretrained", "individual", "task_arithmetic"], merged=EXPERTS)
    assert base.cells() == ["63.2", "59.8", "60.7", "46.0", "31.6", "32.5", "48.2", "43.9", "48.2"]
    assert tuned.cells() == ["75.0", "78.3", "95.2", "99.0", "97.3", "98.9", "99.6", "79.7", "90.3"]
    assert ta.cells() == ["57.1", "55.7", "64.9", "76.7", "77.9", "68.5", "96.1", "47.2", "68.0"]
    assert (ta.key, ta.title, ta.suite) == ("task_arithmetic", "Task Arithmetic λ=.3", "TA8")
    assert ta.accuracies[0] == 57.1  # not 57.1083, which has no average beside it
    assert ta.source == "FusionBench docs, modelpool/clip_vit (2026-08)"


def test_columns_keep_their_order_and_lack_what_nobody_published():
    tasks = ["dtd", "mine", "cars"]
    (row,) = published_rows("ViT-L/14", tasks, ["ties_merging", "nothing_known"], merged=list(reversed(EXPERTS)))
    figure = {f.task: f.accuracy for f in figures() if (f.backbone, f.method_key) == ("ViT-L/14", "ties_merging")}
    assert row.accuracies == (figure["dtd"], None, figure["stanford-cars"])
    assert row.cells()[1] == row.cells()[-1] == "–"
    (row,) = published_rows("ViT-L/14", ["dtd", "cars"], ["ties_merging"], merged=EXPERTS)
    assert row.average == pytest.approx((figure["dtd"] + figure["stanford-cars"]) / 2)
    assert not published_rows("ViT-L/14", ["mine"], ["ties_merging"], merged=EXPERTS)


@pytest.mark.parametrize(
    "merged", [EXP1, suite_tasks("TALL14"), [*EXPERTS, "mine"], [*EXPERTS, "cars"], EXPERTS[:7], []]
)
def test_figures_of_another_number_of_tasks_never_stand_beside_a_merge(merged: list[str]):
    rows = published_rows(
        "ViT-B/32", TA8, ["tsv_merging", "task_arithmetic", "individual", "pretrained"], merged=merged
    )
    assert [row.key for row in rows] == ["individual", "pretrained"]
    assert rows[1].cells()[-1] == "48.2"


def test_the_suite_decides_between_figures_of_one_method():
    for suite, average in (("TA8", 83.06), ("TALL20", 73.23)):
        tasks = suite_tasks(suite)
        method, base = published_rows("ViT-B/32", tasks, ["tsv_merging", "pretrained"], merged=tasks)
        assert (method.suite, base.suite, method.average) == (suite, suite, average)
        assert None not in (*method.accuracies, *base.accuracies)
    (base,) = published_rows("ViT-B/32", TA8, ["pretrained"], merged=suite_tasks("TALL20"))
    assert (base.suite, base.accuracies[0]) == ("TALL20", 63.18)  # its own suite where both have all columns
    (base,) = published_rows("ViT-B/32", suite_tasks("TALL14"), ["pretrained"], merged=EXPERTS)
    assert base.suite == "TALL20"  # the one that has the columns


def test_lora_experts_are_models_of_their_own():
    names = ("ViT-B/16", "ViT-B/16 LoRA-16", "ViT-B/16 L-LoRA-16")
    rows = [published_rows(name, TA8, ["expert_mnist", "individual"], merged=EXPERTS) for name in names]
    assert [len(found) for found in rows] == [2, 1, 1]
    assert len({found[0].accuracies for found in rows}) == 3


def test_methods_with_figures_go_by_our_names():
    counted = Counter(f.method_key for f in figures())
    for name in ("simple_average", "task_arithmetic", "ties_merging", "tsv_merging", "iso_c", "iso_cts", "wudi"):
        assert find("method", name).name == name
        assert counted[name] >= 8


def test_keys_of_records():
    recipe = {"method": {"name": "iso_c", "scaling_factor": 1.5}, "pool": []}
    assert method_key("merged", recipe) == method_key("other", recipe) == "iso_c"
    assert method_key("merged", {**recipe, "edits": [{"name": "dare"}]}) is None
    assert method_key("merged", {**recipe, "finishes": [{"name": "svc"}]}) is None
    assert [method_key(role, None) for role in ("base", "expert", "other")] == ["pretrained", "individual", None]


@pytest.mark.parametrize(
    ("base", "backbone"),
    [
        ("openai/clip-vit-base-patch32", "ViT-B/32"),
        ("openai/clip-vit-base-patch16@57c216476eefef5ab752ec549e440a49ae4ae5f3", "ViT-B/16"),
        ("/data/models/clip-vit-large-patch14", "ViT-L/14"),
        ("./clip-vit-base-patch32/", "ViT-B/32"),
        ("somebody/clip-vit-base-patch32", None),
        ("openai/clip-vit-large-patch14-336", None),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", None),
        ("pkg://clipfuse/tiny/weights/base", None),
    ],
)
def test_backbones(base: str, backbone: str | None):
    assert backbone_of(base) == backbone
