"""The card of an expert: that it says all that `finetune.json` knows, and that what is to be copied works."""

import ast
import re
from typing import Any

import pytest
import yaml

from clipfuse.checkpoints.expert_card import expert_card, finetune_file, front_matter
from clipfuse.pool import HuggingFaceClipVisionPool
from clipfuse.run.finetune_config import finetune_config

SETTINGS = finetune_config({"task": "gtsrb", "limit": 26640, "max_grad_norm": 1.5}).settings()
"""A recipe's, all of them."""

BEFORE = {"before": ["sun397", "dtd"], "sha256": "57a7" * 16}

FACTS: dict[str, Any] = {
    "schema": 1,
    "clipfuse": "0.1.0",
    "kind": "full",  # full, lora, linearised-lora or linearised
    "mode": "separate",  # separate, joint or sequential
    "tasks": [
        {
            "name": "gtsrb",
            "split": "train",
            "images": 26640,  # that were trained on
            "classes": 43,
            "fingerprint": "f1" * 32,  # sha256 of the images
            "rows": "all",  # or the sha256 of the choice of them
            "held_out": 0,  # images of train that were validated on, and not trained on
            "val_images": 1000,
            "head": "4ead" * 8,
            "hub_dataset": "tanganke/gtsrb",  # or null
            "revision": "da7a" * 10,  # or null
            "licence": "cc-by-4.0",  # or null
        }
    ],
    "base": {
        "path": "openai/clip-vit-base-patch32",
        "revision": "ba5e" * 10,  # or null
        "files": {"model.safetensors": "5afe" * 16},
        "identity": "1de7" * 8,
    },
    "start": None,  # of a sequence, the tasks before and the sha256 of the weights that it went on from
    "recipe": {"name": "published", **SETTINGS},
    "parameters": {"trained": 28362240, "total": 87456000},
    "steps": 4000,
    "validation": {"validate_every": 500, "val_images": 1000},
    "val": {"gtsrb": {"n": 1000, "before": 0.341, "after": 0.987, "loss_before": 2.7182, "loss_after": 0.0512}},
    "task_vector": {"norm": 2.1234},
    "versions": {"torch": "2.13.0", "transformers": "5.23.0", "accelerate": "1.12.0"},
    "curve": {"loss": [[10, 3.1], [20, 2.9]], "accuracy": {"gtsrb": [[0, 0.341], [4000, 0.987]]}},
}
"""A whole `finetune.json`, as far as the card reads it."""


def of_kind(kind: str, **more: Any) -> dict[str, Any]:
    given = {"train": "lora" if "lora" in kind else "full", "linearised": "linearised" in kind}
    return {**FACTS, "kind": kind, "recipe": {**FACTS["recipe"], **given}, **more}


def jointly() -> dict[str, Any]:
    dtd = {**FACTS["tasks"][0], "name": "dtd", "classes": 47, "images": 3384, "held_out": 376, "hub_dataset": None}
    val = {**FACTS["val"], "dtd": {"n": 376, "before": 0.441, "after": 0.776}}
    return {**FACTS, "mode": "joint", "tasks": [*FACTS["tasks"], dtd], "val": val}


def without_what_is_optional() -> dict[str, Any]:
    task = {**FACTS["tasks"][0], "hub_dataset": None, "revision": None, "licence": None}
    base = {**FACTS["base"], "path": "/home/me/clip", "revision": None, "files": {"model.safetensors": None}}
    return {**FACTS, "tasks": [task], "base": base, "val": {}, "curve": {"loss": [], "accuracy": {}}}


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)


def head(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def prose(card: str) -> str:
    """All but the front matter and what stands in fences."""
    return re.sub(r"^```.*?^```$", "", card.split("---\n", 2)[2], flags=re.DOTALL | re.MULTILINE)


def test_it_says_what_was_trained_on_what_and_what_came_out():
    card = expert_card(FACTS)
    task, base = FACTS["tasks"][0], FACTS["base"]
    for fact in (
        *("# CLIP vision encoder fine-tuned on gtsrb\n", "clipfuse 0.1.0", "4,000 steps", "43 classes", "26,640"),
        *(task[key] for key in ("fingerprint", "head", "hub_dataset", "revision", "licence")),
        *(base["path"], base["revision"], base["files"]["model.safetensors"], base["identity"]),
        *("28,362,240 parameters", "the encoder has 87,456,000", "norm 2.123", "`published`", "`all`"),
        "| gtsrb | 1,000, of its val split | 34.1 | 98.7 | 2.718 | 0.051 |",
        *("not test", "![curves](curves.svg)", "No training images were held out"),
        *("2.13.0", "5.23.0", "1.12.0", "text encoder", "logit_scale"),
    ):
        assert fact in prose(card), fact
    for setting, value in (("lr", "1e-05"), ("batch_size", "32"), ("max_grad_norm", "1.5"), ("augment", "none")):
        assert f"| `{setting}` | {value} |" in card
    assert "`rank`" not in card  # counts in a LoRA alone


def test_front_matter_is_what_the_hub_reads():
    assert head(expert_card(FACTS)) == {
        "library_name": "transformers",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["clipfuse"],
        "base_model": "openai/clip-vit-base-patch32",
        "base_model_relation": "finetune",
        "datasets": ["tanganke/gtsrb"],
    }
    lora = head(expert_card(of_kind("lora")))
    assert (lora["tags"], lora["base_model_relation"]) == (["clipfuse", "lora"], "adapter")
    assert head(expert_card(of_kind("linearised-lora")))["tags"] == ["clipfuse", "lora", "linearised"]
    assert head(expert_card(of_kind("linearised")))["tags"] == ["clipfuse", "linearised"]
    at = {**FACTS["base"], "path": "openai/clip-vit-base-patch32@main"}
    assert yaml.safe_load(front_matter({**FACTS, "base": at}))["base_model"] == "openai/clip-vit-base-patch32"


@pytest.mark.parametrize("path", ["/home/me/clip", "./clip", "pkg://clipfuse/tiny/weights/base", "modelscope://a/b"])
def test_a_base_that_is_not_on_the_hub_is_none_there(path: str):
    facts = {**FACTS, "base": {**FACTS["base"], "path": path, "revision": None}}
    assert "base_model" not in head(expert_card(facts))
    assert f"`{path}`" in prose(expert_card(facts))


@pytest.mark.parametrize(
    "facts",
    [FACTS, jointly(), of_kind("lora"), {**FACTS, "mode": "sequential", "start": BEFORE}],
    ids=["separate", "joint", "lora", "sequential"],
)
def test_the_recipe_gives_the_settings_again(facts: dict[str, Any]):
    [_, recipe] = blocks(expert_card(facts), "yaml")
    config = finetune_config(yaml.safe_load(recipe))
    assert config.settings() == {key: value for key, value in facts["recipe"].items() if key != "name"}
    assert config.mode == facts["mode"]
    assert config.base == f"openai/clip-vit-base-patch32@{'ba5e' * 10}"
    names = [*(facts["start"] or {"before": []})["before"], *(task["name"] for task in facts["tasks"])]
    assert config.task == (names[0] if facts["mode"] == "separate" else names)


def test_a_recipe_that_nobody_else_has_is_not_needed_again():
    epochs = {**SETTINGS, "steps": None, "epochs": {"gtsrb": 11.0, "dtd": 76.0}}
    facts = {**FACTS, "recipe": {"name": "/home/me/mine.yaml", **epochs}}
    assert finetune_config(yaml.safe_load(finetune_file(facts))).settings() == epochs
    card = expert_card(facts)
    assert "`mine`" in card
    assert "/home/me" not in card
    assert "| `epochs` | gtsrb 11.0 |" in card  # of other tasks there are none in here


def test_the_pool_opens_and_pins_its_base():
    for facts, name in ((FACTS, "gtsrb"), (jointly(), "joint")):
        [pool, _] = blocks(expert_card(facts), "yaml")
        found = HuggingFaceClipVisionPool.from_tree(yaml.safe_load(pool))
        assert found.model_names == (name,)
        assert found.members["_pretrained_"].ref == f"openai/clip-vit-base-patch32@{'ba5e' * 10}"


def test_several_tasks_have_a_row_each():
    card = expert_card(jointly())
    assert "fine-tuned jointly on gtsrb and dtd" in card
    assert "43 classes of gtsrb and 47 classes of dtd" in card
    assert "| dtd | 376, held out of train | 44.1 | 77.6 |  |  |" in card
    assert "| dtd | local at" not in card
    assert "held out for val" in card
    assert "No training images were held out" not in card
    assert "taskpool.tasks=[gtsrb,dtd]" in card


@pytest.mark.parametrize(
    ("kind", "loads", "warns"),
    [
        ("full", "from_pretrained", None),
        ("lora", "PeftModel", None),
        ("linearised", None, "another function"),
        ("linearised-lora", None, "peft does not read"),
    ],
)
def test_how_it_is_loaded_fits_what_it_is(kind: str, loads: str | None, warns: str | None):
    card = expert_card(of_kind(kind))
    snippets = blocks(card, "python")
    for snippet in snippets:
        ast.parse(snippet)
    assert len(snippets) == (loads is not None)
    assert loads is None or loads in snippets[0]
    assert warns is None or warns in card
    assert ("`rank`" in card) == ("lora" in kind)
    assert f"clipfuse evaluate this/folder base=openai/clip-vit-base-patch32@{'ba5e' * 10}" in card


def test_an_adapter_is_put_on_its_base_at_its_revision():
    [snippet] = blocks(expert_card(of_kind("lora")), "python")
    assert f'from_pretrained("openai/clip-vit-base-patch32", revision="{"ba5e" * 10}")' in snippet
    [snippet] = blocks(
        expert_card(of_kind("lora", base={**FACTS["base"], "path": "/my/clip", "revision": None})), "python"
    )
    assert 'from_pretrained("/my/clip")' in snippet


def test_a_sequence_says_where_it_went_on():
    card = expert_card({**FACTS, "mode": "sequential", "start": BEFORE})
    assert f"model.safetensors `{'57a7' * 16}`" in card
    again = yaml.safe_load(finetune_file({**FACTS, "mode": "sequential", "start": BEFORE}))
    assert again["task"] == ["sun397", "dtd", "gtsrb"]
    assert "It began from" not in expert_card(FACTS)


@pytest.mark.parametrize("facts", [FACTS, without_what_is_optional(), jointly()])
def test_what_is_not_known_is_not_in_it(facts: dict[str, Any]):
    said = prose(expert_card(facts))
    assert not re.search(r"\b(None|null|nan)\b", said)


def test_without_optional_facts_it_has_neither_results_nor_curves():
    card = expert_card(without_what_is_optional())
    assert "nothing was measured" in card
    assert "curves.svg" not in card
    assert "licence" not in card
    assert "local" in card


def test_the_same_facts_give_the_same_text():
    assert expert_card(FACTS) == expert_card({key: FACTS[key] for key in reversed(FACTS)})
