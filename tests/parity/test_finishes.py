"""Finishes against short float64 references, and what must hold for them."""

from typing import Any

import numpy as np
import pytest
import torch
from random_models import random_models
from references import Models, flat, result
from torch import Tensor

import clipfuse
from clipfuse.errors import ConfigError
from clipfuse.fusion.svc import Svc, svc
from clipfuse.pool import Leaf

CALIBRATE = {"name": "svc", "alpha": 0.1}


@pytest.fixture(scope="module", params=[0.0, 0.8], ids=["uncorrelated", "correlated"])
def models(request: pytest.FixtureRequest) -> Models:
    return random_models(request.param)


def calibrated(delta: np.ndarray, taus: list[np.ndarray], alpha: float) -> np.ndarray:
    u, sigma, vh = np.linalg.svd(delta, full_matrices=False)
    for r in range(len(sigma)):
        divisor, merged = 0.0, u[:, r] @ delta
        for tau in taus:
            own = u[:, r] @ tau
            divisor += max(alpha, merged @ own / (own @ own) if own.any() else 0.0)
        sigma[r] *= len(taus) / divisor if divisor else 1.0
    return u * sigma @ vh


@pytest.mark.parametrize(
    ("method", "factor", "alpha"),
    [("task_arithmetic", 0.3, 0.1), ("task_arithmetic", 1, 1), ("simple_average", None, 0.2)],
)
def test_svc(models: Models, method: str, factor: float | None, alpha: float):
    settings = {} if factor is None else {"scaling_factor": factor}
    finishes = [{"name": "svc", "alpha": alpha}]
    plain = clipfuse.merge(models, method, **settings).tensors
    found = clipfuse.merge(models, method, finishes=finishes, **settings).tensors
    for name, base in models["_pretrained_"].items():
        if base.ndim != 2:
            torch.testing.assert_close(found[name], plain[name], atol=1e-7, rtol=1e-6)
            continue
        taus = [(models[task][name].double() - base.double()).numpy() for task in ("digits", "signs", "roads")]
        want = torch.from_numpy(calibrated(sum(taus) * (factor or 1 / 3), taus, alpha))
        assert (found[name].double() - base.double() - want).norm() / want.norm() < 1e-4, name


def test_svc_sees_task_vectors_as_they_were_before_edits():
    """With one expert, and Δ made half of it by an edit, every coefficient is a half."""
    models = random_models()
    one = {name: models[name] for name in ("_pretrained_", "signs")}
    half = [{"name": "factors", "factors": {"signs": 0.5}}]
    found = clipfuse.merge(one, "task_arithmetic", scaling_factor=1.0, edits=half, finishes=[CALIBRATE]).tensors
    for name, base in one["_pretrained_"].items():
        want = models["signs"][name] - base if base.ndim == 2 else 0.5 * (models["signs"][name] - base)
        torch.testing.assert_close(found[name] - base, want, atol=1e-6, rtol=1e-4)


def test_svc_of_one_expert_with_lambda_one_is_that_expert():
    models = random_models()
    one = {name: models[name] for name in ("_pretrained_", "signs")}
    found = result(one, "task_arithmetic", scaling_factor=1.0, finishes=[CALIBRATE])
    torch.testing.assert_close(found, flat(models["signs"]), atol=1e-7, rtol=1e-6)


def leaf(*taus: Tensor) -> Leaf:
    return Leaf("w", tuple("abcd"[: len(taus)]), torch.zeros_like(taus[0]), taus)


def test_svc_undoes_what_equal_experts_gain_in_the_sum():
    tau = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(svc(leaf(tau, tau, tau), 3 * tau, Svc(alpha=0.1)), tau, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(svc(leaf(tau, tau), 2 * tau, Svc(alpha=5.0)), 2 / 5 * tau, atol=1e-5, rtol=1e-4)


def test_svc_counts_no_response_where_an_expert_has_none():
    """Two experts on directions of their own: s is 1 and 0, the divisor 1 + alpha; rounding must not tell otherwise."""
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(n, 8, generator=generator)).Q for n in (60, 40))
    a, b = (u[:, :4] * 3) @ v[:, :4].T, (u[:, 4:] * torch.tensor([1.0, 0.7, 0.5, 0.2])) @ v[:, 4:].T
    found = svc(leaf(a, b), a + b, Svc(alpha=0.25))
    torch.testing.assert_close(found, 2 / 1.25 * (a + b), atol=1e-5, rtol=1e-3)
    zero = torch.zeros_like(a)
    torch.testing.assert_close(svc(leaf(a, zero), a, Svc(alpha=0.25)), 2 / 1.25 * a, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_svc_leaves_directions_alone_whose_divisor_is_zero_and_all_but_matrices(alpha: float):
    tau = torch.outer(torch.arange(1.0, 31), torch.linspace(-1, 1, 20))
    zero = torch.zeros_like(tau)
    assert torch.equal(svc(leaf(tau), zero, Svc(alpha=alpha)), zero)
    torch.testing.assert_close(svc(leaf(tau), tau, Svc(alpha=alpha)), tau, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(svc(leaf(zero, zero), tau, Svc(alpha=0.0)), tau)
    torch.testing.assert_close(svc(leaf(-tau, -tau), tau, Svc(alpha=0.0)), tau)
    vector = torch.arange(5.0)
    assert svc(leaf(vector), 2 * vector, Svc(alpha=alpha)).tolist() == (2 * vector).tolist()


def scaled(finish: dict[str, Any], models: Models) -> dict[str, float]:
    """How much larger Δ is with a finish, by parameter; every task vector is one."""
    ones = {name: torch.ones_like(t) for name, t in models["_pretrained_"].items()}
    zeros = {name: torch.zeros_like(t) for name, t in ones.items()}
    merged = clipfuse.merge(
        {"_pretrained_": zeros, "a": ones}, "task_arithmetic", scaling_factor=1.0, finishes=[finish]
    )
    assert all(len(tensor.unique()) == 1 for tensor in merged.tensors.values())
    return {name: round(float(tensor.view(-1)[0]), 6) for name, tensor in merged.tensors.items()}


def test_scales_by_name():
    patterns = {"*": 2, "encoder.layers.*.mlp.*": 0.5, "encoder.layers.1.*": 0.25, "*.fc1.bia?": -1.0}
    for name, factor in scaled({"name": "scales", "scales": patterns}, random_models()).items():
        want = 0.5 if ".mlp." in name else 2.0
        want = 0.25 if "layers.1." in name else want
        assert factor == (-1.0 if name.endswith(".fc1.bias") else want), name


def test_what_is_not_named_keeps_its_scale():
    found = scaled({"name": "scales", "scales": {"post_layernorm.bias": 3.0}}, random_models())
    assert {name for name, factor in found.items() if factor != 1.0} == {"post_layernorm.bias"}


def test_scales_by_block():
    for name, factor in scaled({"name": "scales", "scales": [0.5, 2.0]}, random_models()).items():
        assert factor == (0.5 if "layers.0." in name else 2.0 if "layers.1." in name else 1.0), name


def test_lines():
    for name, factor in scaled({"name": "lines", "alpha": 0.5, "beta": 2.0}, random_models()).items():
        assert factor == (2.5 if "layers.1." in name else 0.5), name


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (
            {"name": "scales", "scales": {"encoder.layer.*": 0.5}},
            "finishes.scales: 'encoder.layer.*' matches no parameter; names are as encoder.layers.0.",
        ),
        ({"name": "scales", "scales": [0.5, 0.5, 0.5]}, "finishes.scales: 3 factors for 2 blocks"),
        ({"name": "scales"}, "finishes.0.scales: is required"),
        ({"name": "svc"}, "finishes.0.alpha: is required"),
        ({"name": "svc", "alpha": -0.1}, "finishes.0.alpha: input should be greater than or equal to 0"),
    ],
)
def test_wrong_settings_are_named_before_weights_are_read(tree: dict[str, Any], says: str):
    with pytest.raises(ConfigError) as caught:
        clipfuse.merge(random_models(), "task_arithmetic", finishes=[tree])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sweep_with_svc_has_the_bits_of_single_merges():
    from clipfuse.fusion.chain import configure
    from clipfuse.fusion.sinks import TensorSink
    from clipfuse.fusion.sweep import sweep

    models = random_models()
    chain = configure({"name": "task_arithmetic", "scaling_factor": [0.1, 1.0]}, finishes=[CALIBRATE])
    found = sweep(models, chain)
    for value in chain.values:
        sink = TensorSink.empty(found.specs)
        found.write(value, sink)
        single = clipfuse.merge(models, chain.with_value(value)).tensors
        assert all(torch.equal(sink.tensors[name], tensor) for name, tensor in single.items())
