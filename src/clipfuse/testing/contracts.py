"""What every rule promises, as functions of a `Case`: each returns, or raises AssertionError and says how it is broken.

The first line of a docstring is the promise in words.
"""

import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clipfuse.errors import ClipfuseError
from clipfuse.fusion.add import add
from clipfuse.fusion.merge import merge
from clipfuse.fusion.sinks import TensorSink
from clipfuse.fusion.sweep import sweep
from clipfuse.pool import PRETRAINED, HuggingFaceClipVisionPool
from clipfuse.pool.task_vector import TaskVector
from clipfuse.testing.case import Case, check_finite, check_moves, check_near, check_same, fail
from clipfuse.testing.models import random_models, write_models

VALUES = (0.3, -1.25)
"""What a sweep is tried with."""


@dataclass(frozen=True)
class Contract:
    """A promise: the function that checks it, and whether it concerns a case's rule."""

    check: Callable[[Case], None]
    concerns: Callable[[Case], bool]

    @property
    def promise(self) -> str:
        """The promise in words."""
        return (inspect.getdoc(self.check) or "").partition("\n")[0]


CONTRACTS: dict[str, Contract] = {}
"""By name, in the order in which they are checked."""


def contract(concerns: Callable[[Case], bool] = lambda case: True) -> Callable[..., Callable[[Case], None]]:
    """Add a function to the contracts under its own name."""

    def add(function: Callable[[Case], None]) -> Callable[[Case], None]:
        CONTRACTS[function.__name__] = Contract(function, concerns)
        return function

    return add


def gives_delta(case: Case) -> bool:
    return case.chain.method.rule.returns == "delta"


@contract()
def documented(case: Case) -> None:
    """Function and settings are documented, and the paper is named."""
    rule = case.rule
    if "Source:" not in (inspect.getdoc(rule.function) or ""):
        fail("the function's docstring does not say where the rule is from; it needs a part that begins with Source:")
    if not any(sign in rule.formula for sign in "=←") and rule.config.model_fields:
        fail(f"the docstring of {rule.config.__name__} does not begin with the formula, one line with = or ←")
    for name, field in rule.config.model_fields.items():
        if not field.description:
            fail(f"the setting {name} has no docstring")
    if not rule.paper.title or not rule.paper.bibtex().startswith("@"):
        fail("the paper has no title")


@contract()
def round_trip(case: Case) -> None:
    """Settings survive being written as JSON and read again."""
    cfg = case.step.cfg
    again = type(cfg).model_validate_json(cfg.model_dump_json())
    if again != cfg:
        fail(f"{cfg!r} came back as {again!r}")


@contract()
def same_form(case: Case) -> None:
    """The result has the base's names, shapes and dtypes."""
    models = random_models()
    found, base = case.merged(models), models[PRETRAINED]
    if set(found) != set(base):
        fail(f"names differ: {sorted(set(found) ^ set(base))[:3]}")
    for name, tensor in found.items():
        if (tensor.shape, tensor.dtype) != (base[name].shape, base[name].dtype):
            fail(f"{name} is {tuple(tensor.shape)} {tensor.dtype}, the base's {tuple(base[name].shape)} float32")


@contract()
def nothing_learned(case: Case) -> None:
    """Experts that equal the base give the base."""
    models = random_models()
    base = models[PRETRAINED]
    check_near(case.merged(dict.fromkeys(models, base)), base, absolute=1e-7, relative=1e-6)


@contract(gives_delta)
def zero_factor(case: Case) -> None:
    """λ = 0 gives the base, bit for bit."""
    models = random_models()
    chain = case.chain.with_setting("scaling_factor", 0.0)
    check_same(case.merged(models, chain), models[PRETRAINED])


@contract()
def inputs_untouched(case: Case) -> None:
    """The models that are merged are not changed."""
    models, again = random_models(), random_models()
    case.merged(models)
    for name, tensors in models.items():
        check_same(tensors, again[name], where=f"{name}: ")


@contract()
def any_threads(case: Case) -> None:
    """The same seed gives the same bits, on 1, 2 and 3 threads."""
    models = random_models(0.3)
    first = case.merged(models, threads=1)
    for threads in (2, 3):
        check_same(case.merged(models, threads=threads), first, where=f"{threads} threads: ")


@contract(lambda case: not case.rule.ordered)
def any_order(case: Case) -> None:
    """The order of the experts does not matter beyond rounding, but where two entries are exactly as large."""
    models = random_models(0.3)
    turned = {PRETRAINED: models[PRETRAINED], **{name: models[name] for name in reversed(case.tasks)}}
    found, wanted = case.merged(turned), case.merged(models)
    for name, base in models[PRETRAINED].items():
        sizes = torch.stack([models[task][name] - base for task in case.tasks]).abs().sort(0).values
        tied = (sizes[1:] == sizes[:-1]).any(0)
        found[name] = torch.where(tied, wanted[name], found[name])
    if case.chain.grain == "element":
        check_near(found, wanted, absolute=1e-6, relative=1e-5)
    else:
        check_moves(found, wanted, models[PRETRAINED])


@contract()
def any_home(case: Case) -> None:
    """Models on disk, and results written there, have the bits of those in memory."""
    models = case.members(random_models())
    with tempfile.TemporaryDirectory() as folder:
        pool = HuggingFaceClipVisionPool.from_tree({"models": write_models(models, Path(folder))})
        written = merge(pool, case.chain, out=Path(folder, "merged"), data=case.data)
        check_same(dict(written.tensors), case.merged(models))


@contract(lambda case: case.rule.grain == "element" and not case.rule.streams)
def any_slices(case: Case) -> None:
    """Slices give the bits of whole parameters."""
    models = random_models(0.3)
    whole = replace(case.step, rule=replace(case.rule, grain="leaf"))
    check_same(case.merged(models), case.merged(models, case.with_step(whole)))


@contract()
def one_expert(case: Case) -> None:
    """One expert alone is merged to finite weights, or refused with a ClipfuseError."""
    models = random_models()
    try:
        alone = {PRETRAINED: models[PRETRAINED], case.tasks[0]: models[case.tasks[0]]}
        found = merge(case.pool(alone), case.chain, data=case.data)
    except ClipfuseError as error:
        if "not finite" in str(error):
            raise
        return
    check_finite(dict(found.tensors))


@contract()
def idle_expert(case: Case) -> None:
    """An expert that equals the base does no harm: the result is finite."""
    models = random_models()
    check_finite(case.merged(models | {case.tasks[0]: models[PRETRAINED]}))


@contract()
def half_precision(case: Case) -> None:
    """A float16 pool is computed in float32 and rounded once."""
    halves = {name: {k: t.half() for k, t in tensors.items()} for name, tensors in random_models().items()}
    floats = {name: {k: t.float() for k, t in tensors.items()} for name, tensors in halves.items()}
    check_same(case.merged(halves), case.merged(floats, dtype=torch.float16))


@contract(lambda case: case.rule.continual and not case.step.cfg.shuffle)
def one_at_a_time(case: Case) -> None:
    """Adding experts one at a time gives the bits of merging all of them at once."""
    models = random_models(0.3)
    first, *rest = case.tasks
    found = merge({PRETRAINED: models[PRETRAINED], first: models[first]}, case.chain)
    for task in rest:
        found = add(found, models[task], name=task)
    check_same(dict(found.tensors), case.merged(models))


@contract(lambda case: case.rule.kind == "finish" and not case.rule.sees_experts)
def blind(case: Case) -> None:
    """A finish that says that it does not look at the experts does not."""
    models = random_models()
    base, first, second = models[PRETRAINED], *case.tasks[:2]
    both = {name: models[first][name] + (models[second][name] - base[name]) for name in base}
    found = merge({PRETRAINED: base, first: models[first], second: models[second]}, case.chain)
    check_near(dict(merge({PRETRAINED: base, first: both}, case.chain).tensors), dict(found.tensors), 1e-6, 1e-5)


@contract(gives_delta)
def task_vectors(case: Case) -> None:
    """Experts given as task vectors are merged like experts given as weights."""
    models = case.members(random_models())
    base = models[PRETRAINED]
    vectors = {task: TaskVector({n: models[task][n] - base[n] for n in base}) for task in case.tasks}
    found = merge(case.pool({PRETRAINED: base, **vectors}), case.chain, data=case.data)
    check_near(dict(found.tensors), case.merged(models), absolute=1e-6, relative=1e-5)


@contract(gives_delta)
def swept(case: Case) -> None:
    """A sweep over scaling_factor has the bits of single merges."""
    check_sweep(case, "scaling_factor")


@contract(lambda case: case.rule.affine_in is not None)
def affine(case: Case) -> None:
    """A sweep over the setting that the method is affine in has the bits of single merges, and the method's values."""
    name = str(case.rule.affine_in)
    check_sweep(case, name)
    models = random_models()
    plain = replace(case.step, rule=replace(case.rule, affine_in=None))
    for value in VALUES:
        found = case.merged(models, case.chain.with_setting(name, value))
        wanted = case.merged(models, replace(case.chain, method=plain).with_setting(name, value))
        check_near(found, wanted, absolute=1e-6, relative=1e-5)


def check_sweep(case: Case, name: str) -> None:
    models = random_models()
    found = sweep(case.pool(case.members(models)), replace(case.chain, swept=name, values=VALUES), data=case.data)
    for value in VALUES:
        sink = TensorSink.empty(found.specs)
        found.write(value, sink)
        single = case.merged(models, case.chain.with_setting(name, value))
        check_same(dict(sink.tensors), single, where=f"{name}={value}: ")
