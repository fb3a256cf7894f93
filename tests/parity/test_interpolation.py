"""Lines, arcs and spherical means against float64 references on whole vectors."""

import math

import pytest
import torch
from random_models import random_models
from references import EPS, Models, check, flat
from torch import Tensor

import clipfuse


def experts(correlation: float) -> Models:
    """Experts without their base."""
    return {name: tensors for name, tensors in random_models(correlation).items() if name != "_pretrained_"}


@pytest.fixture(params=[0.0, 0.8], ids=["uncorrelated", "correlated"])
def models(request: pytest.FixtureRequest) -> Models:
    return experts(request.param)


def wide(norms: tuple[float, ...] = (1.0, 2.0, 0.5)) -> Models:
    """Models of unrelated weights, nearly at right angles to each other, of given norms per tensor."""
    shapes = {name: tensor.shape for name, tensor in random_models()["_pretrained_"].items()}
    generator = torch.Generator().manual_seed(7)

    def tensors(norm: float) -> dict[str, Tensor]:
        drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return {name: tensor * (norm / tensor.norm()) for name, tensor in drawn.items()}

    return {task: tensors(norm) for task, norm in zip("abcde", norms, strict=False)}


def pair(models: Models) -> Models:
    return dict(list(models.items())[:2])


def logarithm(point: Tensor, vector: Tensor) -> Tensor:
    """The tangent at unit vector `point` that leads to unit vector `vector`."""
    off = vector - (vector @ point) * point
    angle = torch.atan2(off.norm(), vector @ point)
    return off * (angle / off.norm() if off.norm() > 0 else 0.0)


def karcher(rows: Tensor, weights: Tensor) -> Tensor:
    """Gradient descent on whole vectors until nothing moves, from the heaviest expert: not where the rule begins."""
    units = rows / rows.norm(dim=1, keepdim=True)
    point = units[int(weights.argmax())]
    for _ in range(500):
        step = sum(w * logarithm(point, unit) for w, unit in zip(weights, units, strict=True))
        if step.norm() < 1e-13:
            break
        point = step.norm().cos() * point + step.norm().sin() * step / step.norm()
        point = point / point.norm()
    return point * (weights @ rows.norm(dim=1))


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_linear_interpolation(models: Models, t: float):
    models = pair(models)
    (a, b), found = (flat(m) for m in models.values()), clipfuse.merge(models, "linear_interpolation", t=t).tensors
    check(flat(dict(found)), (1 - t) * a + t * b, torch.zeros(()), ((1 - t) * a).abs() + (t * b).abs())
    if t in (0.0, 1.0):
        end = list(models.values())[int(t)]
        assert all(torch.equal(found[name], end[name]) for name in end)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp(models: Models, t: float):
    models = pair(models)
    generator = torch.Generator().manual_seed(3)
    models["signs"] = {n: v + 0.01 * torch.randn(v.shape, generator=generator) for n, v in models["signs"].items()}
    found = clipfuse.merge(models, "slerp", t=t).tensors
    arcs = 0
    for name, tensor in found.items():
        a, b = (tensors[name].double() for tensors in models.values())
        norm = float(a.norm() * b.norm())
        cosine = float((a * b).sum()) / norm if norm else 1.0
        if abs(cosine) > 0.9995:
            want = (1 - t) * a + t * b
        else:
            arcs += 1
            angle = math.acos(cosine)
            want = (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
        torch.testing.assert_close(tensor.double(), want, atol=1e-7, rtol=1e-6)
    assert 0 < arcs < len(found), "both branches are taken"


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.5]])
@pytest.mark.parametrize("angles", ["uncorrelated", "correlated", "right"])
def test_multi_slerp(weights, angles: str):
    models = wide() if angles == "right" else experts(0.8 if angles == "correlated" else 0.0)
    shares = torch.tensor(weights or [1.0, 1.0, 1.0], dtype=torch.float64)
    shares /= shares.sum()
    for name, tensor in clipfuse.merge(models, "multi_slerp", weights=weights).tensors.items():
        rows = torch.stack([tensors[name].double().flatten() for tensors in models.values()])
        want = karcher(rows, shares) if rows.norm(dim=1).all() else shares @ rows
        factors = torch.linalg.lstsq(rows.T, want[:, None]).solution  # the mean lies in the span of the experts
        size = (factors * rows).abs().sum(0)
        wrong = (tensor.double().flatten() - want).abs() > EPS * size
        assert not wrong.any(), f"{name}: {int(wrong.sum())} elements are off"


def test_multi_slerp_nothing_pulls_any_more():
    """Where Σ w_k ∠² is least, the pulls of the experts cancel."""
    models, shares = wide((1.0, 3.0, 0.2, 1.0, 1.0)), [0.1, 0.3, 0.2, 0.15, 0.25]
    found = clipfuse.merge(models, "multi_slerp", weights=dict(zip(models, shares, strict=True))).tensors
    for name, tensor in found.items():
        point = tensor.double().flatten() / tensor.double().norm()
        units = [tensors[name].double().flatten() / tensors[name].double().norm() for tensors in models.values()]
        pull = sum(w * logarithm(point, unit) for w, unit in zip(shares, units, strict=True))
        assert torch.as_tensor(pull).norm() < 1e-6


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_multi_slerp_of_two_of_equal_norms_is_slerp(t: float):
    models = wide((2.0, 2.0))
    many = clipfuse.merge(models, "multi_slerp", weights=[1 - t, t]).tensors
    arc = clipfuse.merge(models, "slerp", t=t).tensors
    for name in many:
        torch.testing.assert_close(many[name], arc[name], atol=1e-7, rtol=2e-6)


def test_multi_slerp_of_unequal_norms_keeps_their_weighted_mean():
    models = wide((1.0, 4.0))
    for tensor in clipfuse.merge(models, "multi_slerp", weights={"a": 3.0, "b": 1.0}).tensors.values():
        torch.testing.assert_close(float(tensor.norm()), 0.75 * 1 + 0.25 * 4, atol=1e-5, rtol=0)


def test_multi_slerp_needs_its_steps():
    models, skewed = wide((1.0, 1.0, 1.0)), [0.7, 0.2, 0.1]
    few, many, more = (
        clipfuse.merge(models, "multi_slerp", weights=skewed, steps=steps).tensors for steps in (1, 20, 200)
    )
    name = "encoder.layers.0.mlp.fc1.weight"
    assert (few[name] - many[name]).norm() > 1e-3
    assert (more[name] - many[name]).norm() < 1e-6


def test_multi_slerp_of_one_expert_or_of_equal_ones_is_that_expert(models: Models):
    digits = models["digits"]
    for again in ({"a": digits}, {"a": digits, "b": digits, "c": digits}):
        for name, tensor in clipfuse.merge(again, "multi_slerp").tensors.items():
            torch.testing.assert_close(tensor, digits[name], atol=0, rtol=3e-7)


def test_multi_slerp_without_a_weight_is_without_the_expert(models: Models):
    two = clipfuse.merge(pair(models), "multi_slerp", weights=[1.0, 3.0]).tensors
    three = clipfuse.merge(models, "multi_slerp", weights=[1.0, 3.0, 0.0]).tensors
    for name in two:
        torch.testing.assert_close(two[name], three[name], atol=1e-9, rtol=1e-6)


def test_multi_slerp_of_a_zero_tensor_and_of_opposite_ones():
    models = wide((1.0, 1.0))
    zero = {name: torch.zeros_like(tensor) for name, tensor in models["a"].items()}
    minus = {name: -2 * tensor for name, tensor in models["a"].items()}

    def merged(models: Models, weights: list[float] | None = None) -> Tensor:
        return flat(dict(clipfuse.merge(models, "multi_slerp", weights=weights).tensors))

    a = flat(models["a"])
    assert not merged({"a": zero, "b": zero}).any()
    torch.testing.assert_close(merged({"a": models["a"], "z": zero}), a / 2, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(merged({"a": models["a"], "z": minus}), -a / 2, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(merged({"a": models["a"], "z": minus}, [3.0, 1.0]), a * 1.25, atol=1e-7, rtol=1e-6)
    assert merged({"a": models["a"], "b": models["b"], "z": minus}).isfinite().all()


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1.0, -0.5, 1.0], "numbers ≥ 0"),
        ([0.0, 0.0, 0.0], "not all 0"),
        ([1.0, 1.0], "2 numbers for 3 experts"),
        ({"digits": 1.0, "sings": 1.0, "roads": 1.0}, "signs"),
        ({"digits": 1.0}, "has none"),
    ],
)
def test_multi_slerp_refuses_weights(models: Models, weights, says: str):
    with pytest.raises(clipfuse.ClipfuseError, match=says):
        clipfuse.merge(models, "multi_slerp", weights=weights)


def test_linear_interpolation_takes_two(models: Models):
    with pytest.raises(clipfuse.ClipfuseError, match="takes 2 experts; the pool has 3"):
        clipfuse.merge(models, "linear_interpolation")


@pytest.mark.parametrize("settings", [{"t": 1.5}, {"t": -0.1}])
def test_t_lies_between_the_experts(models: Models, settings):
    for method in ("linear_interpolation", "slerp"):
        with pytest.raises(clipfuse.ClipfuseError, match=r"method\.t"):
            clipfuse.merge(pair(models), method, **settings)


def test_steps_are_at_least_one(models: Models):
    with pytest.raises(clipfuse.ClipfuseError, match=r"method\.steps"):
        clipfuse.merge(models, "multi_slerp", steps=0)
