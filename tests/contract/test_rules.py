"""Every registered rule keeps every contract of `clipfuse.testing`. A new one is covered the moment it is registered."""

from typing import Any

import pytest
import torch
from random_models import SMALL, vision_model

import clipfuse
import clipfuse.fusion  # registers the rules
from clipfuse.fusion.registry import METHODS, TABLES, Rule
from clipfuse.pool import ModelPool
from clipfuse.testing import check_contract, contracts_of
from clipfuse.testing.case import Case

SETTINGS: dict[str, dict[str, Any]] = {
    "weighted_average": {"weights": {"digits": 0.5, "signs": 0.3, "roads": 0.2}},
    "lines": {"alpha": 0.5, "beta": 0.5},
    "wudi": {"steps": 10},
    "doge_ta": {"steps": 10},
    "dop": {"steps": 5},
    "della": {"density": 0.5, "epsilon": 0.2},
    "breadcrumbs": {"density": 0.5, "top": 0.1},
    "magnitude_prune": {"keep": 0.3},
    "truncate": {"rank_fraction": 0.25},
    "quantise": {"bits": 4},
    "factors": {"factors": {"signs": -0.5}},
    "scales": {"scales": {"encoder.*": 0.5}},
    "svc": {"alpha": 0.1},
}
"""Values of settings that have no default, or one that takes its time."""

ORDER_MATTERS = {"linear_interpolation", "slerp"}

every_rule = pytest.mark.parametrize(
    "rule", [*METHODS.values(), *EDITS.values(), *FINISHES.values()], ids=lambda r: r.name
)
every_method = pytest.mark.parametrize("name", METHODS)
every_chain = pytest.mark.parametrize("name", [*METHODS, *EDITS, *FINISHES])


def chain_for(name: str, **settings: Any) -> Chain:
    """A chain with the rule in it: an edit or finish around task arithmetic."""
    tree = {"name": name, **SETTINGS.get(name, {}), **settings}
    if name in EDITS:
        return configure("task_arithmetic", edits=[tree])
    return configure("task_arithmetic", finishes=[tree]) if name in FINISHES else configure(tree)


def members(chain: Chain, models: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """As many of the models as the chain takes."""
    count = chain.method.rule.models
    return models if count is None else dict(list(models.items())[: 1 + count])


def merged(chain: Chain, models: dict[str, dict[str, Tensor]], **options: Any) -> dict[str, Tensor]:
    return dict(clipfuse.merge(members(chain, models), chain, **options).tensors)


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@every_rule
def test_is_documented(rule: Rule):
    doc = inspect.getdoc(rule.function) or ""
    assert "Source:" in doc, "says where the rule comes from"
    assert rule.formula
    assert "=" in rule.formula or "←" in rule.formula or rule.config.__name__ == "EmptyConfig", (
        "begins with the formula"
    )
    assert rule.paper.bibtex().startswith("@")
    for name, field in rule.config.model_fields.items():
        assert field.description, f"{rule.name}.{name} has no docstring"


@every_rule
def test_configuration_round_trips(rule: Rule):
    cfg = rule.config.model_validate(SETTINGS.get(rule.name, {}))
    assert rule.config.model_validate_json(cfg.model_dump_json()) == cfg


@every_chain
def test_result_has_the_base_names_shapes_and_dtypes(name: str):
    models = random_models()
    result = merged(chain_for(name), models)
    assert {n: (t.shape, t.dtype) for n, t in result.items()} == {
        n: (t.shape, t.dtype) for n, t in models["_pretrained_"].items()
    }


@every_chain
def test_experts_equal_to_the_base_give_the_base(name: str):
    base = random_models()["_pretrained_"]
    still = {"_pretrained_": base, "digits": base, "signs": base, "roads": base}
    result = merged(chain_for(name), still)
    for key, tensor in result.items():
        torch.testing.assert_close(tensor, base[key], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", [n for n, rule in METHODS.items() if rule.returns == "delta"])
def test_zero_scaling_factor_gives_the_base(name: str):
    models = random_models()
    assert same_bits(merged(chain_for(name, scaling_factor=0.0), models), models["_pretrained_"])


@every_chain
def test_inputs_are_untouched(name: str):
    models, again = random_models(), random_models()
    merged(chain_for(name), models)
    assert all(same_bits(models[key], again[key]) for key in models)


@every_chain
def test_same_seed_same_bits_whatever_the_threads(name: str):
    models = random_models()
    assert same_bits(merged(chain_for(name), models, threads=1), merged(chain_for(name), models, threads=3))


@every_chain
def test_order_of_experts_does_not_matter(name: str):
    if name in ORDER_MATTERS or chain_for(name).method.rule.continual:
        pytest.skip("its experts have places")
    models = random_models()
    turned = {
        "_pretrained_": models["_pretrained_"],
        **dict(reversed([m for m in models.items() if m[0] != "_pretrained_"])),
    }
    chain = chain_for(name)
    a, b = merged(chain, models), merged(chain, turned)
    for key, tensor in a.items():
        if chain.grain == "element":
            torch.testing.assert_close(tensor, b[key], atol=1e-6, rtol=1e-5)
        else:
            moved = (tensor - models["_pretrained_"][key]).norm()
            assert (tensor - b[key]).norm() <= 1e-4 * moved + 1e-6, key


@pytest.mark.parametrize("name", [name for name, rule in FINISHES.items() if not rule.sees_experts])
def test_a_finish_that_promises_so_does_not_look_at_the_experts(name: str):
    models = random_models()
    step = chain_for(name).finishes[0]
    results = []
    for tasks in (("digits", "signs"), ("roads",)):
        view = PoolView(pool_from_memory({"_pretrained_": models["_pretrained_"], **{t: models[t] for t in tasks}}))
        state = [step.rule.prepare(view, step.cfg)] if step.rule.prepare else []
        results.append({leaf.name: step.rule.function(leaf, leaf.base.clone(), step.cfg, *state) for leaf in view})
    assert same_bits(*results)


@every_chain
def test_files_equal_memory(name: str, pool_yaml):
    chain = chain_for(name)
    models = random_models()
    if len(members(chain, models)) < len(models):
        lines = pool_yaml.read_text().splitlines()
        pool_yaml.write_text("\n".join(lines[: 2 + 2 * len(members(chain, models))]))
    lazy = clipfuse.merge(clipfuse.HuggingFaceClipVisionPool.from_yaml(pool_yaml), chain)
    assert same_bits(dict(lazy.tensors), merged(chain, models))


@every_chain
def test_sliced_equals_whole(name: str):
    chain = chain_for(name)
    if chain.method.rule.streams:
        pytest.skip("it chooses its slices itself")
    models = members(chain, random_models())
    sliced = prepare(chain, PoolView(pool_from_memory(models)))
    for key, tensor in merged_whole(sliced).items():
        piece = merged_sliced(sliced, key)
        assert torch.equal(piece, tensor.flatten())


def merged_whole(prepared: Prepared) -> dict[str, Tensor]:
    return {n: merged_leaf(prepared, prepared.pool.leaf(n, seed=0)) for n in prepared.pool.specs}


def merged_sliced(prepared: Prepared, name: str) -> Tensor:
    if prepared.chain.grain != "element":
        return merged_leaf(prepared, prepared.pool.leaf(name)).flatten()
    size = prepared.pool.specs[name].numel
    parts = [merged_leaf(prepared, prepared.pool.leaf(name, i, min(i + 65536, size))) for i in range(0, size, 65536)]
    return torch.cat(parts)
SETTINGS: dict[str, dict[str, Any]] = {}
"""Values of settings that have neither a default nor an example."""

RULES = [rule for table in TABLES.values() for rule in table.values()]
PROMISES = [(rule, name) for rule in RULES for name in contracts_of(rule, **SETTINGS.get(rule.name, {}))]


@pytest.mark.parametrize(("rule", "name"), PROMISES, ids=[f"{rule.name}-{name}" for rule, name in PROMISES])
def test_rule_keeps(rule: Rule, name: str):
    check_contract(rule, name, **SETTINGS.get(rule.name, {}))


def test_every_table_is_covered():
    assert set(TABLES) == {"method", "edit", "finish"}
    assert SMALL.hidden_size * SMALL.intermediate_size > 65536, "a weight must be longer than a slice"


@pytest.mark.parametrize("rule", METHODS.values(), ids=METHODS)
def test_a_pool_of_modules_needs_no_state_dict(rule: Rule):
    case = Case.of(rule, SETTINGS.get(rule.name, {}))
    modules = {name: vision_model(seed) for seed, name in enumerate(("_pretrained_", *case.tasks))}
    result = clipfuse.merge(modules, case.chain).load_model()
    with torch.no_grad():
        assert result(torch.zeros(1, 3, 32, 32)).pooler_output.isfinite().all()


def test_a_pool_without_experts_is_refused():
    with pytest.raises(clipfuse.ClipfuseError, match="no experts"):
        ModelPool(None, {})
