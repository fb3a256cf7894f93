"""Recipes: presets, lengths, and learning rates."""

import math

import pytest

from clipfuse.config.presets import load_preset, presets
from clipfuse.errors import ConfigError
from clipfuse.finetune.recipe import Recipe
from clipfuse.order import Order
from clipfuse.run.finetune_config import finetune_config
from clipfuse.tasks import catalog


def test_every_preset_is_a_recipe():
    assert {"published", "task_arithmetic", "lora", "l_lora", "linearised", "attention", "tiny"} <= presets(
        "recipe"
    ).keys()
    for name in presets("recipe"):
        Recipe.model_validate(load_preset("recipe", name))


def test_the_published_recipe_is_the_default():
    published = Recipe.model_validate(load_preset("recipe", "published"))
    assert published == Recipe(steps=4000)
    assert (published.optimizer, published.lr, published.schedule, published.batch_size) == (
        "adam",
        1e-5,
        "constant",
        32,
    )
    assert not published.augment.active
    assert published.kind == "full"


def test_the_authors_recipe_has_epochs_for_every_task():
    authors = Recipe.model_validate(load_preset("recipe", "task_arithmetic"))
    for task in catalog():
        assert authors.steps_of({task: 12_800}) % 100 == 0
    assert authors.steps_of({"dtd": 3_384}) == math.ceil(76 * 3_384 / 128)
    with pytest.raises(ConfigError, match="epochs: the recipe has none for colours"):
        authors.steps_of({"colours": 10})


def test_warm_up_and_cosine():
    recipe = Recipe(steps=100, lr=0.1, schedule="cosine", warmup_steps=10)
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == rates[10] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.05)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[99] < 1e-4
    assert {Recipe(steps=9, lr=0.1).rate(step, 9) for step in range(9)} == {0.1}


def test_settings_lie_over_the_preset():
    config = finetune_config(
        {"task": "dtd", "recipe": "task_arithmetic", "augment": {"horizontal_flip": 0.5}, "steps": 10}
    )
    assert config.augment.horizontal_flip == 0.5
    assert config.augment.random_resized_crop == (0.9, 1.0) or list(config.augment.random_resized_crop or ()) == [
        0.9,
        1.0,
    ]
    assert (config.steps, config.epochs, config.optimizer) == (10, None, "adamw")


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"task": "dtd", "recipe": "publishd"}, "unknown recipe 'publishd'; did you mean 'published'"),
        ({"task": "dtd", "learning_rate": 1e-4}, "unknown key 'learning_rate'"),
        ({"task": "dtd", "lr": -1.0}, "finetune.lr"),
        ({"task": "dtd", "taskpool": {"tasks": ["dtd"]}}, "takes either task=gtsrb or taskpool=TA8"),
        ({"task": "dtd", "steps": 10, "epochs": 2}, "takes either steps or epochs"),
        ({"task": "dtd", "recipe": "lora", "mode": "sequential"}, "mode: sequential"),
        ({"task": "dtd", "augment": {"flip": 0.5}}, "augment: unknown key 'flip'"),
        ({"task": "dtd", "recipe": 3}, "recipe: takes a preset's name"),
    ],
)
def test_what_a_recipe_does_not_take(tree: dict, told: str):
    with pytest.raises(ConfigError, match=told):
        finetune_config(tree)


def test_every_pass_is_an_order_of_its_own():
    order = Order(7, "colours", seed=3)
    stream = order.take(0, 28)
    passes = [stream[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert [order.take(start, 3) for start in range(0, 27, 3)] == [
        stream[start : start + 3] for start in range(0, 27, 3)
    ]
    assert Order(7, "colours", 3).take(5, 11) == stream[5:16]
    assert (
        Order(70, "colours", 4).take(0, 70) != Order(70, "colours", 3).take(0, 70) != Order(70, "shapes", 3).take(0, 70)
    )
