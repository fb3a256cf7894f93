"""The engine: order of steps, sweeps, dtypes, tallies, and what does not fit."""

from pathlib import Path

import pytest
import torch
from random_models import SMALL
from safetensors.torch import load_file, save_file
from torch import Tensor

import clipfuse
from clipfuse.errors import ClipfuseError, ConfigError, ModelError, PoolError
from clipfuse.fusion.chain import Chain, configure
from clipfuse.fusion.registry import METHODS
from clipfuse.fusion.sinks import TensorSink
from clipfuse.fusion.sweep import sweep
from clipfuse.pool import pool_from_memory

Models = dict[str, dict[str, Tensor]]
CHAINS = {
    "plain": configure({"name": "task_arithmetic", "scaling_factor": [0.1, 0.35, 1.0]}),
    "edits": configure({"name": "ties_merging", "scaling_factor": [0.1, 0.35, 1.0]}, ["dare"], seed=4),
    "finishes": configure(
        {"name": "magmax", "scaling_factor": [0.1, 0.35, 1.0]},
        finishes=[{"name": "lines", "alpha": 0.2, "beta": 1.0}, "expo"],
    ),
}


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_sweep_has_the_bits_of_single_merges(models: Models, chain: Chain, dtype: str | None):
    found = sweep(models, chain, dtype=dtype)
    for value in chain.values:
        sink = TensorSink.empty(found.specs)
        found.write(value, sink)
        single = clipfuse.merge(models, chain.with_value(value), dtype=dtype).tensors
        assert all(torch.equal(sink.tensors[name], tensor) for name, tensor in single.items())


def test_a_merge_refuses_a_list(models: Models):
    with pytest.raises(ConfigError, match="select=val"):
        clipfuse.merge(models, CHAINS["plain"])


def test_finishes_come_after_lambda_and_scale_by_depth(models: Models):
    lines = {"name": "lines", "alpha": 0.5, "beta": 2.0}
    plain = clipfuse.merge(models, "task_arithmetic", scaling_factor=0.3).tensors
    done = clipfuse.merge(models, "task_arithmetic", scaling_factor=0.3, finishes=[lines]).tensors
    for name, base in models["_pretrained_"].items():
        factor = 2.5 if "layers.1" in name else 0.5
        torch.testing.assert_close(done[name] - base, factor * (plain[name] - base), atol=1e-6, rtol=1e-4)


def test_a_finish_on_merged_weights_works_on_their_difference_to_the_base(models: Models):
    expo = {"name": "expo", "alpha": 1.0}
    plain = clipfuse.merge(models, "simple_average").tensors
    done = clipfuse.merge(models, "simple_average", finishes=[expo]).tensors
    for name, base in models["_pretrained_"].items():
        torch.testing.assert_close(done[name] - base, 2 * (plain[name] - base), atol=1e-6, rtol=1e-4)
    with pytest.raises(PoolError, match="needs a base"):
        clipfuse.merge({"a": models["signs"]}, "simple_average", finishes=[expo])


def test_dtypes_may_be_mixed_and_are_named(models: Models):
    models["signs"] = {name: tensor.half() for name, tensor in models["signs"].items()}
    pool = pool_from_memory(models)
    assert any("signs float16" in warning for warning in pool.warnings)
    result = clipfuse.merge(pool, "task_arithmetic").tensors
    assert {tensor.dtype for tensor in result.values()} == {torch.float32}
    halves = clipfuse.merge(pool, "task_arithmetic", dtype="float16").tensors
    assert all(torch.equal(tensor, result[name].half()) for name, tensor in halves.items())


def test_what_dare_kept_is_recorded(models: Models):
    merged = clipfuse.merge(models, "task_arithmetic", edits=[{"name": "dare", "drop": 0.75}])
    measured = merged.recipe["measured"]
    assert measured["dare.of.signs"] == sum(tensor.numel() for tensor in models["signs"].values())
    assert measured["dare.kept.signs"] / measured["dare.of.signs"] == pytest.approx(0.25, abs=0.01)
    assert measured["dare.kept.signs"] != measured["dare.kept.roads"]


def test_dare_at_zero_is_its_rule_and_rescales_by_the_probability(models: Models):
    plain = clipfuse.merge(models, "task_arithmetic").tensors
    none = clipfuse.merge(models, "task_arithmetic", edits=[{"name": "dare", "drop": 0.0}]).tensors
    assert all(torch.equal(none[name], plain[name]) for name in plain)
    one = {name: models[name] for name in ("_pretrained_", "signs")}
    dropped = clipfuse.merge(one, "task_arithmetic", scaling_factor=1.0, edits=[{"name": "dare", "drop": 0.3}]).tensors
    p = round(0.3 * 65536) / 65536
    for name, base in models["_pretrained_"].items():
        delta = models["signs"][name] - base
        kept = dropped[name] != base
        torch.testing.assert_close(dropped[name][kept], (base + delta / (1 - p))[kept], atol=1e-7, rtol=1e-6)


def test_dare_does_not_depend_on_the_other_experts(models: Models):
    def one(names: tuple[str, ...]) -> dict[str, Tensor]:
        weights = {name: float(name == "signs") for name in names if name != "_pretrained_"}
        chosen = {name: models[name] for name in names}
        return dict(clipfuse.merge(chosen, "task_arithmetic", weights=weights, edits=["dare"], seed=3).tensors)

    alone, among = one(("_pretrained_", "signs")), one(("_pretrained_", "roads", "digits", "signs"))
    for name, tensor in alone.items():
        torch.testing.assert_close(tensor, among[name], atol=1e-7, rtol=0)
    other_seed = clipfuse.merge(models, "task_arithmetic", edits=["dare"], seed=4).tensors
    same_seed = clipfuse.merge(models, "task_arithmetic", edits=["dare"], seed=3).tensors
    assert any(not torch.equal(other_seed[name], same_seed[name]) for name in other_seed)


def test_recipes_say_all_that_is_needed(models: Models):
    recipe = clipfuse.merge(models, "ties_merging", keep=0.5, edits=["dare"], seed=9).recipe
    again = configure(recipe["method"], recipe["edits"], seed=recipe["seed"])
    assert again.to_tree() == {key: recipe[key] for key in ("method", "edits", "seed")}
    assert [member["name"] for member in recipe["pool"]] == ["_pretrained_", "digits", "signs", "roads"]


def test_state_dicts_have_no_geometry(models: Models, tmp_path: Path):
    merged = clipfuse.merge(models, "magmax")
    for act in (
        merged.load_model,
        lambda: merged.save(tmp_path / "x"),
        lambda: clipfuse.merge(models, "magmax", out=tmp_path / "x"),
    ):
        with pytest.raises(ModelError, match="geometry is not known"):
            act()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["signs"].pop("post_layernorm.bias"), "signs: lacks 'post_layernorm.bias'"),
        (lambda m: m["signs"].update({"encoder.layers.7.x": torch.zeros(1)}), "signs: has 'encoder.layers.7.x'"),
        (
            lambda m: m["roads"].update({"post_layernorm.bias": torch.zeros(3)}),
            "roads: another geometry: post_layernorm.bias is (3,)",
        ),
        (lambda m: m["roads"]["pre_layrnorm.bias"].fill_(torch.inf), "roads: pre_layrnorm.bias: holds NaN or Inf"),
        (
            lambda m: m["_pretrained_"]["pre_layrnorm.bias"].fill_(torch.nan),
            "_pretrained_: pre_layrnorm.bias: holds NaN",
        ),
        (lambda m: m.pop("_pretrained_"), "needs a base"),
        (lambda m: [m.pop(name) for name in ("digits", "signs", "roads")], "no experts"),
        (lambda m: m["signs"].update({"post_layernorm.bias": "zero"}), "is a str; a state dict holds tensors"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(models: Models, change, says: str):
    change(models)
    with pytest.raises(ClipfuseError) as caught:
        clipfuse.merge(models, "task_arithmetic")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_slerp_takes_two(models: Models):
    with pytest.raises(PoolError, match="takes 2 experts; the pool has 3"):
        clipfuse.merge(models, "slerp")


def test_experts_of_other_heads_or_patches_are_refused(pool_yaml: Path):
    import json

    path = pool_yaml.parent / "models/signs/config.json"
    for change in ({"num_attention_heads": 4}, {"patch_size": 16}):
        path.write_text(json.dumps(SMALL.to_config() | change))
        with pytest.raises(PoolError, match="signs: another geometry"):
            _ = clipfuse.HuggingFaceClipVisionPool.from_yaml(pool_yaml).weights
    path.write_text(json.dumps(SMALL.to_config() | {"hidden_act": "gelu"}))
    assert any("activation gelu" in w for w in clipfuse.HuggingFaceClipVisionPool.from_yaml(pool_yaml).weights.warnings)


def test_special_models_are_not_experts(models: Models):
    models["_ignored_"] = models["signs"]
    assert pool_from_memory(models).tasks == ("digits", "signs", "roads")


def test_bits_do_not_depend_on_the_order_of_tensors_in_the_files(pool_yaml: Path):
    def merged() -> dict[str, Tensor]:
        return dict(clipfuse.merge(clipfuse.HuggingFaceClipVisionPool.from_yaml(pool_yaml), "ties_merging").tensors)

    before = {name: tensor.clone() for name, tensor in merged().items()}
    path = pool_yaml.parent / "models/signs/model.safetensors"
    tensors = load_file(path)
    save_file({name: tensors[name] for name in reversed(tensors)}, path, {"format": "pt", "note": "another header"})
    after = merged()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_method_is_in_the_table_of_contents():
    import clipfuse.fusion

    assert set(METHODS) <= set(clipfuse.fusion.__all__)
