"""The file of merging coefficients: what goes in comes out to the bit, and what is wrong in it is said in a line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipfuse.checkpoints.geometry import Geometry, parameter_shapes
from clipfuse.checkpoints.names import PROJECTION
from clipfuse.errors import ConfigError
from clipfuse.fusion.coefficients import COEFFICIENTS, Coefficients, check_fits, place, read_coefficients

EXPERTS = ("digits", "signs", "roads")
NAMES = tuple(parameter_shapes(Geometry(num_hidden_layers=12)))
FILE = {"schema": 1, "method": "adamerging", "grain": "layer", "experts": ["digits"], "coefficients": {"a": [0.3]}}


def learned(grain: Any = "layer") -> Coefficients:
    """Random bits of float32, as far as they are finite, and numbers at its ends."""
    names = NAMES if grain == "layer" else ["all"]
    bits = np.random.default_rng(0).integers(0, 1 << 32, 4 * len(names) * len(EXPERTS), np.uint32).view(np.float32)
    values = bits[np.isfinite(bits)][: len(names) * len(EXPERTS)].reshape(len(names), -1)
    values[0] = [0.0, np.finfo(np.float32).max, -np.finfo(np.float32).smallest_subnormal]
    rows = {name: tuple(row) for name, row in zip(names, values.tolist(), strict=True)}
    ledger = {"expert": "digits", "split": "test", "images": 16_000, "chosen": {"seed": 0}}
    return Coefficients(EXPERTS, rows, grain, "adamerging", ("test_images",), (ledger,), 3)


def refusal(folder: Path, content: Any) -> str:
    path = folder / "c.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_coefficients(path)
    found = str(caught.value)
    assert found.startswith(str(path))
    assert "\n" not in found
    return found.removeprefix(f"{path}: ")


@pytest.mark.parametrize("grain", ["layer", "task"])
def test_what_is_written_is_read_to_the_bit(tmp_path: Path, grain: str):
    wanted = learned(grain)
    (tmp_path / COEFFICIENTS).write_text(wanted.to_text(), encoding="utf-8")
    found = read_coefficients(tmp_path)
    assert found == wanted == read_coefficients(str(tmp_path / COEFFICIENTS))
    assert found.to_text() == wanted.to_text()
    assert json.loads(wanted.to_text())["uses"] == ["test_images"]


def test_a_parameter_has_a_line_in_the_order_of_the_tower():
    shuffled = [NAMES[at] for at in torch.randperm(len(NAMES), generator=torch.Generator().manual_seed(0)).tolist()]
    rows = {name: (np.float32(0.1).item(), -0.25) for name in [PROJECTION, *shuffled]}
    lines = Coefficients(("digits", "signs"), rows).to_text().splitlines()
    body = [line.split(":") for line in lines[lines.index('  "coefficients": {') + 1 : -2]]
    found = [json.loads(name) for name, _ in body]
    layers = [int(name.split(".")[2]) for name in found if name.startswith("encoder.")]
    assert layers == sorted(layers)
    assert len(layers) == 12 * 16
    assert found[:5] == [
        *("embeddings.class_embedding", "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"),
        *("pre_layrnorm.weight", "pre_layrnorm.bias"),
    ]
    assert [name.removeprefix("encoder.layers.0.") for name in found[5:9]] == [
        *("layer_norm1.weight", "layer_norm1.bias", "self_attn.q_proj.weight", "self_attn.q_proj.bias")
    ]
    assert found[-3:] == ["post_layernorm.weight", "post_layernorm.bias", PROJECTION]
    assert {numbers.strip(" ,") for _, numbers in body} == {"[ 0.1,  -0.25]"}
    assert len({line.index("[") for line in lines if line.startswith('    "e')}) == 1


def test_strange_names_have_a_place_too():
    assert sorted(["encoder.layers.x.mlp.fc1", "encoder.layers.3.new.weight", "é"], key=place)[0].endswith("new.weight")


def test_a_matrix_goes_by_the_names_of_experts_and_parameters():
    found = learned()
    tasks, names = ("roads", "digits", "signs"), NAMES[::-1]
    matrix = found.matrix(tasks, names)
    assert matrix.dtype == torch.float32
    assert matrix.shape == (len(NAMES), 3)
    for i, j in ((0, 0), (7, 2), (50, 1)):
        assert matrix[i, j].item() == found.rows[names[i]][EXPERTS.index(tasks[j])]
    check_fits(found, tasks, names)


def test_one_row_is_for_every_parameter():
    found = Coefficients(EXPERTS, {"all": (0.1, 0.2, 0.3)}, "task")
    check_fits(found, EXPERTS[::-1], NAMES)
    assert torch.equal(found.matrix(("signs", "roads", "digits"), NAMES), torch.tensor([[0.2, 0.3, 0.1]] * len(NAMES)))


@pytest.mark.parametrize(
    ("experts", "names", "says"),
    [
        (("digits", "signs", "rods"), NAMES, "unknown expert 'roads'; did you mean 'rods'? Known: digits, rods, signs"),
        (("digits", "signs"), NAMES, "unknown expert 'roads'"),
        ((*EXPERTS, "pets"), NAMES, "lacks pets; takes numbers for every expert of the pool"),
        (EXPERTS, NAMES[1:], f"unknown parameter {NAMES[0]!r}"),
        (EXPERTS, (*NAMES, PROJECTION), f"lacks {PROJECTION}; takes numbers for every parameter of the pool"),
        (EXPERTS, (*NAMES, "x", "y"), "lacks x and 1 more"),
    ],
)
def test_other_experts_and_parameters_are_refused(experts: tuple[str, ...], names: tuple[str, ...], says: str):
    with pytest.raises(ConfigError) as caught:
        check_fits(learned(), experts, names, "here/coefficients.json")
    assert str(caught.value).startswith("here/coefficients.json: " + says)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"coefficients": {"a": [float("nan")]}}, "coefficients.a.0: input should be a finite number (found nan)"),
        ({"coefficients": {"a": [float("-inf")]}}, "coefficients.a.0: input should be a finite number (found -inf)"),
        ({"coefficients": {"a": [1e39]}}, "coefficients.a.0: input should be less than"),
        ({"coefficients": {"a": [int("1" * 400)]}}, "coefficients.a.0: input should be a valid number"),
        ({"coefficients": {"a": [True]}}, "coefficients.a.0: input should be a valid number (found True)"),
        ({"coefficients": {"a": ["x", "y"]}}, "coefficients.a.0: input should be a valid number (found 'x')"),
        ({"coefficients": {"a": 0.3}}, "coefficients.a: input should be"),
        ({"coefficients": {"a": [0.3, 0.2]}}, "coefficients: a: has 2 numbers; takes one for each of 1 experts"),
        ({"coefficients": {}}, "coefficients: grain 'layer' takes a row for each parameter (found [])"),
        ({"grain": "task"}, "coefficients: grain 'task' takes one row, 'all' (found ['a'])"),
        ({"grain": "model"}, "grain: input should be 'layer' or 'task' (found 'model')"),
        ({"experts": ["a", "a"]}, "experts: takes different names, one or more (found ['a', 'a'])"),
        ({"experts": []}, "experts: takes different names"),
        ({"uses": ["pictures"]}, "uses.0: input should be 'train_images'"),
        ({"schema": 2}, "schema: is 2; clipfuse "),
        ({"coefs": 1}, "unknown key 'coefs'; did you mean 'coefficients'?"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path: Path, change: dict[str, Any], says: str):
    assert says in refusal(tmp_path, FILE | change)


def test_what_is_not_said_has_a_default(tmp_path: Path):
    (tmp_path / COEFFICIENTS).write_text(json.dumps(FILE), encoding="utf-8")
    assert read_coefficients(tmp_path) == Coefficients(("digits",), {"a": (np.float32(0.3).item(),)})


@pytest.mark.parametrize("content", ["", "{", '{"a": 1, "a": 2}', "[" * 100_000])
def test_no_json(tmp_path: Path, content: str):
    assert refusal(tmp_path, content).startswith("is not JSON (")


@pytest.mark.parametrize("content", ["[1]", "{}", "3"])
def test_other_json(tmp_path: Path, content: str):
    assert refusal(tmp_path, content).startswith("holds no coefficients; takes a coefficients.json")


def test_no_file(tmp_path: Path):
    for path in (tmp_path, tmp_path / "x"):
        with pytest.raises(ConfigError, match="no such file; takes a coefficients.json that adamerging wrote, or the"):
            read_coefficients(path)
    (tmp_path / "c.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_coefficients(tmp_path / "c.json")


def test_numbers_that_cannot_be_read_again_are_not_taken():
    for value in (float("nan"), float("inf"), 1e39):
        with pytest.raises(ConfigError, match="coefficients: a: signs: takes a finite float32"):
            Coefficients(("digits", "signs"), {"a": (0.3, value)})
    with pytest.raises(ConfigError, match="takes one for each of 2"):
        replace(learned(), experts=("a", "b"))
