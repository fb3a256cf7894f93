"""Every registered rule keeps every contract of `clipfuse.testing`. A new one is covered the moment it is registered."""

import pytest
import torch
from random_models import SMALL, random_models, vision_model

import clipfuse
import clipfuse.fusion  # registers the rules
from clipfuse.fusion.registry import METHODS, TABLES, Rule
from clipfuse.pool import ModelPool
from clipfuse.testing import check_contract, contracts_of
from clipfuse.testing.case import Case, check_moves

RULES = [rule for table in TABLES.values() for rule in table.values()]
PROMISES = [(rule, name) for rule in RULES for name in contracts_of(rule)]


@pytest.mark.parametrize(("rule", "name"), PROMISES, ids=[f"{rule.name}-{name}" for rule, name in PROMISES])
def test_rule_keeps(rule: Rule, name: str):
    check_contract(rule, name)


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_on_cuda_gives_what_it_gives_on_the_cpu(rule: Rule):
    case, models = Case.of(rule, {}), random_models(0.3)
    check_moves(case.merged(models, device="cuda"), case.merged(models), models["_pretrained_"])


def test_every_table_is_covered():
    assert set(TABLES) == {"method", "edit", "finish", "after"}
    assert SMALL.hidden_size * SMALL.intermediate_size > 65536, "a weight must be longer than a slice"


@pytest.mark.parametrize("rule", METHODS.values(), ids=METHODS)
def test_a_pool_of_modules_needs_no_state_dict(rule: Rule):
    case = Case.of(rule, {})
    modules = {name: vision_model(seed) for seed, name in enumerate(("_pretrained_", *case.tasks))}
    result = clipfuse.merge(modules, case.chain, data=case.data).load_model()
    with torch.no_grad():
        assert result(torch.zeros(1, 3, 32, 32)).pooler_output.isfinite().all()


def test_a_pool_without_experts_is_refused():
    with pytest.raises(clipfuse.ClipfuseError, match="no experts"):
        ModelPool(None, {})
