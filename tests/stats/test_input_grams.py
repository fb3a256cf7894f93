"""Gram matrices of the inputs of Linear layers, against products in float64."""

import pytest
import torch
from torch import Tensor, nn

from clipfuse.models.build import build_vision_model
from clipfuse.stats.input_grams import STRIPS, Gram, linears_by_input, watched
from clipfuse.testing import random_models
from clipfuse.testing.models import SMALL


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("width", [1, STRIPS - 3, STRIPS, 50, 333])
def test_batches_add_up_to_the_product_in_float64(width: int):
    gram, rows = Gram(width), noise(120, width) * torch.logspace(-2, 2, width)
    for batch in rows[:100].view(4, 5, 5, width):
        gram.add(batch)
    gram.add(rows[100:])
    found, exact = gram.whole(), rows.double().mT @ rows.double()
    assert gram.rows == 120
    assert torch.equal(found, found.mT)
    size = exact.diagonal().sqrt()
    assert ((found - exact).abs() <= 1e-6 * size[:, None] * size).all()


def test_it_can_be_asked_twice_and_used_again():
    gram = Gram(40)
    gram.add(noise(9, 40))
    first = gram.whole().clone()
    assert torch.equal(gram.whole(), first)
    gram.clear()
    gram.add(noise(9, 40))
    assert gram.rows == 9
    assert torch.equal(gram.whole(), first)


def test_many_batches_are_added_in_float64():
    """In float32 a sum that is 2²⁴ times as large as what comes would not grow any more."""
    gram = Gram(1)
    gram.add(torch.full((1, 1), 2.0**13))
    for _ in range(64):
        gram.add(torch.ones(1, 1))
    assert gram.whole().item() == 2.0**26 + 64


def test_products_are_float32_whatever_the_forward_pass_is():
    gram, rows = Gram(16), noise(50, 16)
    with torch.autocast("cpu", torch.bfloat16):
        gram.add(rows)
    exact = rows.double().mT @ rows.double()
    torch.testing.assert_close(gram.whole(), exact, rtol=1e-5, atol=1e-4)


def test_query_key_and_value_share_one_gram():
    tower = build_vision_model(random_models()["_pretrained_"], SMALL)
    layer, hidden = tower.encoder.layers[0], noise(2, 17, SMALL.hidden_size)
    with torch.no_grad():
        groups = linears_by_input(layer, lambda: layer(hidden, attention_mask=None))
    assert [sorted(group) for group in groups] == [
        ["self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"],
        ["self_attn.out_proj"],
        ["mlp.fc1"],
        ["mlp.fc2"],
    ]


def test_equal_inputs_that_are_not_the_same_tensor_are_two():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.unused = (nn.Linear(3, 3) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x + 0) + self.b(x + 0)

    module = Twice()
    assert linears_by_input(module, lambda: module(noise(2, 3))) == (("a",), ("b",))


def test_hooks_are_gone_afterwards():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    grams = {"1": Gram(4)}
    with watched(module, grams):
        module(noise(5, 4))
    module(noise(5, 4))
    assert grams["1"].rows == 5
    linears_by_input(module, lambda: module(noise(5, 4)))
    with pytest.raises(ZeroDivisionError):
        linears_by_input(module, lambda: 1 / 0)
    assert not any(part._forward_pre_hooks for part in module)
