"""Results on a model card: the table, what is said below it, and the hub's form of it."""

import pytest
from huggingface_hub import ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from made_records import made_record

from clipfuse.report.card_results import evaluate_words, hub_datasets, model_index, results_markdown

URL = "https://hub.example/lab/model/blob/main/records.jsonl"
RECORDS = [
    made_record("gtsrb", 80, 100, over_base=0.3, normalised=0.9, merged_task=True),
    made_record("sun397", 40, 200, over_base=-0.05, merged_task=False, data={"folder": "/home/me/sun/test"}),
]


def cells(markdown: str) -> dict[str, list[str]]:
    """Rows of the first table by their first cell."""
    lines = markdown.split("\n\n")[0].splitlines()
    return {row[0]: row[1:] for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}


def test_the_table_has_tasks_in_the_fields_order_with_intervals_loss_and_means():
    found = cells(results_markdown(RECORDS))
    assert list(found) == ["task", ":--", "SUN397", "GTSRB", "average", "merged", "unseen"]
    header = found["task"]
    rows = {name: dict(zip(header, row, strict=True)) for name, row in found.items()}
    assert rows["GTSRB"] == {
        "data set": "lab/gtsrb@a1a1a1a",
        "images sha256": "ffffffffffff",
        "split": "test",
        "images": "100",
        "accuracy %": "80.0",
        "95 % interval": "71.1 to 86.7",
        "NLL": "0.500",
        "over base": "+30.0",
        "norm. %": "90.0",
    }
    assert rows["SUN397"]["data set"] == "local"
    assert rows["SUN397"]["norm. %"] == "–"
    assert rows["average"]["accuracy %"] == "50.0"
    assert rows["average"]["over base"] == "+12.5"
    assert rows["average"]["norm. %"] == "–"
    assert rows["merged"]["accuracy %"] == "80.0"
    assert rows["unseen"]["95 % interval"] == "± 5.5"


def test_retention_is_told_where_records_know_of_it():
    said = results_markdown(RECORDS)
    assert "no expert of SUN397 was merged; accuracy there is 20.0 % (base: 25.0 %)." in said
    assert "retention" not in results_markdown(RECORDS[:1])


def test_corrupted_images_have_a_table_of_their_own_and_no_place_in_the_index():
    noisy = made_record("gtsrb", 10, 100, corruption={"name": "fog", "severity": 3, "seed": 0})
    said = results_markdown([*RECORDS, noisy])
    assert said.index("| SUN397 |") < said.index("**Images corrupted by fog, severity 3**") < said.index("| 10.0 |")
    assert model_index("m", [*RECORDS, noisy], "1.0", URL) == model_index("m", RECORDS, "1.0", URL)
    assert model_index("m", [noisy], "1.0", URL) == []


def test_the_hub_reads_the_index_as_the_records():
    name, results = model_index_to_eval_results(model_index("model", RECORDS, "1.0", URL))
    assert name == "model"
    assert [(r.metric_type, r.metric_value) for r in results] == [("accuracy", 0.2), ("accuracy", 0.8)]
    assert {r.task_type for r in results} == {"zero-shot-image-classification"}
    local, remote = results
    assert (local.dataset_type, local.dataset_revision, local.dataset_split) == ("sun397", None, "test")
    assert (remote.dataset_type, remote.dataset_revision, remote.dataset_config) == ("lab/gtsrb", "a1" * 20, "default")
    assert remote.metric_args == {"wilson_95": list(RECORDS[0].interval), "correct": 80, "images": 100}
    assert (remote.source_name, remote.source_url) == ("clipfuse 1.0, 100 images", URL)
    assert "/home" not in str(results)
    again = ModelCardData(model_name=name, eval_results=results).to_dict()["model-index"]
    assert model_index_to_eval_results(again) == (name, results)


def test_a_choice_of_the_images_is_called_one():
    few = made_record("dtd", 5, 10, limit=10, chosen={"limit": {"images": 10, "seed": 4}})
    entry = model_index("m", [few], "1.0", URL)[0]["results"][0]
    assert entry["metrics"][0]["name"].endswith("%, a choice of 10 images)")
    assert entry["dataset"]["args"]["limit"] == {"images": 10, "seed": 4}


def test_data_sets_of_the_hub():
    assert hub_datasets([*RECORDS, *RECORDS]) == ["lab/gtsrb"]


TA8 = ["sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"]


@pytest.mark.parametrize(
    ("tasks", "facts", "words"),
    [
        (TA8[::-1], {}, "taskpool=TA8"),
        (["tiny-signs", "dtd"], {}, "'taskpool={tasks: [dtd, tiny-signs]}'"),
        (["dtd"], {"split": "val"}, "'taskpool={tasks: [dtd]}' split=val"),
        (
            ["dtd"],
            {"limit": 9, "chosen": {"limit": {"images": 9, "seed": 4}}},
            "'taskpool={tasks: [dtd]}' --limit 9 --seed 4",
        ),
    ],
)
def test_words_that_score_the_same_images_again(tasks: list[str], facts: dict, words: str):
    assert evaluate_words([made_record(task, 1, 9, **facts) for task in tasks]) == words
