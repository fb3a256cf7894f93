"""Shipped presets: each is read and checked, and what is written more than once agrees."""

from itertools import product

import pytest

from clipfuse.config import parse
from clipfuse.config.presets import SHIPPED, load_preset
from clipfuse.pool import PRETRAINED, HuggingFaceClipVisionPool
from clipfuse.run.config import RunConfig
from clipfuse.run.tasks import get_task
from clipfuse.tasks import TaskPoolConfig, catalog, find_task, fold, read_task

POOLS, SUITES, RUNS = (
    sorted(path.relative_to(SHIPPED / group).with_suffix("").as_posix() for path in (SHIPPED / group).rglob("*.yaml"))
    for group in ("modelpool", "taskpool", "run")
)
ARCHITECTURES = ("clip-vit-base-patch32", "clip-vit-base-patch16", "clip-vit-large-patch14")
ADAPTERS = {"TA8_lora": "_lora-16", "TA8_l-lora": "_l-lora-16"}
"""Pools of adapters → what their addresses end in."""
GENERALIZATION = {
    "generalization_exp1": (["sun397", "stanford-cars", "resisc45", "dtd", "svhn", "gtsrb"], ["mnist", "eurosat"]),
    "generalization_exp2": (["sun397", "stanford-cars", "gtsrb", "eurosat", "dtd", "mnist"], ["resisc45", "svhn"]),
}


def pool(name: str) -> HuggingFaceClipVisionPool:
    return HuggingFaceClipVisionPool.from_tree(load_preset("modelpool", name), name)


def suite(name: str) -> list[str]:
    return list(parse(TaskPoolConfig, load_preset("taskpool", name), name).tasks)


@pytest.mark.parametrize("name", POOLS)
def test_every_pool_is_one(name: str):
    found = pool(name)
    assert found.all_model_names[0] == PRETRAINED
    assert len(found) > 1
    assert len({member.path for member in found.members.values()}) == len(found.members)
    tasks = [get_task(expert).name for expert in found.model_names]
    assert len(set(tasks)) == len(tasks)


@pytest.mark.parametrize(("name", "count"), [("TA8", 8), ("TALL14", 14), ("TALL20", 20)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_experts_stand_in_the_order_of_their_suite(architecture: str, name: str, count: int):
    experts = pool(f"{architecture}_{name}").model_names
    assert len(experts) == count
    assert [get_task(expert).name for expert in experts] == suite(name)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_named_as_such(name: str):
    found = pool(f"clip-vit-base-patch16_{name}")
    assert {n: member.kind for n, member in found.members.items() if member.kind} == dict.fromkeys(
        found.model_names, "lora"
    )


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_is_one(name: str):
    tasks = suite(name)
    assert len(set(tasks)) == len(tasks)
    if not name.startswith("tiny"):
        assert [find_task(task).name for task in tasks] == tasks


@pytest.mark.parametrize("name", RUNS)
def test_every_run_is_one(name: str):
    assert parse(RunConfig, load_preset("run", name), name).method["name"]


@pytest.mark.parametrize("name", ["TA8", "TALL14", "TALL20"])
def test_suites_are_those_of_the_catalogue(name: str):
    tasks = [read_task(path) for path in catalog().values()]
    assert sorted(suite(name)) == sorted(task.name for task in tasks if name in task.suites)
    assert suite(name) == suite("TALL20")[: len(suite(name))], "another order than the field's"


def test_the_catalogue_names_no_other_suite():
    assert {name for path in catalog().values() for name in read_task(path).suites} == {"TA8", "TALL14", "TALL20"}


@pytest.mark.parametrize("name", [name for name in POOLS if not name.startswith("tiny")])
def test_experts_have_the_same_address_in_every_pool(name: str):
    architecture, _, members = name.partition("_")
    assert architecture in ARCHITECTURES
    paths = {n: member.path for n, member in pool(name).members.items()}
    assert paths.pop(PRETRAINED) == f"openai/{architecture}"
    ending = ADAPTERS.get(members, "")
    assert paths == {n: f"tanganke/{architecture}_{find_task(n).name}{ending}" for n in paths}
    assert list(map(fold, paths)) == list(map(fold, merged_tasks(members)))
    eight = pool(f"{architecture}_TA8").members
    assert all(eight[n].path + ending == path for n, path in paths.items() if n in eight)


def merged_tasks(members: str) -> list[str]:
    return GENERALIZATION[members][0] if members in GENERALIZATION else suite("TA8" if members in ADAPTERS else members)


@pytest.mark.parametrize(("name", "architecture"), list(product(GENERALIZATION, ARCHITECTURES)))
def test_generalisation_merges_six_of_the_eight_and_measures_the_other_two(name: str, architecture: str):
    merged, unseen = GENERALIZATION[name]
    experts = pool(f"{architecture}_{name}").model_names
    assert set(experts) < set(pool(f"{architecture}_TA8").model_names)
    assert [find_task(expert).name for expert in experts] == merged
    assert suite(name) == merged + unseen
    assert sorted(suite(name)) == sorted(suite("TA8"))
