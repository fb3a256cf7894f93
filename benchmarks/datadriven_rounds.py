"""What a round of datadriven.py measures in this process and in FusionBench's, and the table of it."""

import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from cases import OFFLINE
from datadriven_lender import idle, large_blocks_kept, noise_lender
from datadriven_plain import Grams, Plain
from measure import ProcessError, run_process, spread
from peers import HERE

from clipfuse.fusion.merge import merge
from clipfuse.pool import HuggingFaceClipVisionPool

BATCH, VAL = 16, 64
"""Images of a task in a step of AdaMerging, and of its split."""
GRAM_BATCH = 32
"""Images in a bare pass before Gram matrices: as many as ours and FusionBench's take."""
PEER, HALF = "FusionBench", "bfloat16"
STEP, SAMPLED, SUMMED = "adamerging, a step", "fisher_merging, sampled", "fisher_merging, batch_sum"
WANTED = {STEP: "<= 1.15", "regmean": "<= 1.25"}


@dataclass
class Figures:
    """Seconds by what was measured; those of one place are of one round, or of one pair of steps."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rows: list[tuple[str, str]] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)
    """What failed, in whatever round."""

    def compare(self, what: str, over: str) -> None:
        """Ask for a row `what` ÷ `over`."""
        if (what, over) not in self.rows:
            self.rows.append((what, over))

    def table(self) -> str:
        """Markdown."""
        lines = ["| measured | seconds | ÷ | seconds | ratio | wanted |", "|---|---:|---|---:|---:|---|"]
        for what, over in (row for row in self.rows if row[0] not in self.left_out):
            a, b = self.seconds[what], self.seconds[over]
            ratios = spread([x / y for x, y in zip(a, b, strict=True)])
            lines.append(f"| {what} | {spread(a)} | {over} | {spread(b)} | {ratios} | {WANTED.get(what, '-')} |")
        return "\n".join(lines)


@dataclass(frozen=True)
class Bench:
    """ViT-B/32 experts, and what is asked of them."""

    figures: Figures
    pool: Path
    """Of eight experts."""
    few: Path
    """Of as many as the methods with statistics are given."""
    steps: int
    images: int

    def lender(self, images: int, precision: str = "float32") -> Any:
        return noise_lender(opened(self.pool).weights.geometry, images, precision)  # type: ignore[arg-type]

    def entropy(self, precision: str = "float32", bare: bool = True) -> None:
        """AdaMerging's steps, each followed by a bare one on the same batches; the first pair is left out."""
        name = named(STEP, precision)
        pool, plain = opened(self.pool), []
        with self.lender(VAL, precision) as lender:
            if bare:
                fixed = Plain(pool.load_model(pool.model_names[0]), lender.lend(pool.model_names, ("val_images",)))
                lender.clock.between = lambda step: plain.append(fixed.entropy_step(fixed.batches(step, BATCH)))
            merge(pool, {"name": "adamerging", "steps": self.steps + 1, "batch": BATCH}, data=lender)
            lender.clock.between = idle  # or it would keep the bare model
        self.figures.seconds[name] += lender.clock.seconds[1:]
        if bare:
            self.figures.seconds["its passes"] += plain[1:]
            self.figures.compare(name, "its passes")

    def grams(self) -> None:
        """Bare forward passes of every expert's images, and their Gram matrices; models are loaded already."""
        pool, spent, grams = opened(self.few), 0.0, None
        with self.lender(self.images) as lender, large_blocks_kept():
            lent = lender.lend(pool.model_names, ("train_images",))
            for task in pool.model_names:
                tower, images = pool.load_model(task), lent.images(task, "train")
                grams = grams or Grams(tower)
                spent += grams.passes(tower, images.pixels(images.choice(self.images)).split(GRAM_BATCH))
        self.figures.seconds["its passes and Gram matrices"].append(spent)
        self.figures.compare("regmean", "its passes and Gram matrices")

    def whole(self, name: str, method: dict[str, Any], precision: str = "float32") -> None:
        """A whole merge in memory, files in the page cache."""
        with self.lender(self.images, precision) as lender:
            began = time.perf_counter()
            merge(opened(self.few), method, data=lender)
            self.figures.seconds[named(name, precision)].append(time.perf_counter() - began)

    def peer(self, python: Path | None, method: str, ours: list[str]) -> None:
        """FusionBench's, as a process of its own; compared with each of `ours`."""
        stepwise = method == "adamerging"
        name = f"{PEER} {method}{', a step' * stepwise}"
        if python is None or name in self.figures.left_out:
            return
        pool = yaml.safe_load((self.pool if stepwise else self.few).read_text(encoding="utf-8"))
        job = {"method": method, "models": {model["name"]: model["path"] for model in pool["models"]}}
        job |= {"images": VAL if stepwise else self.images, "steps": self.steps, "batch": BATCH}
        try:
            done = run_process([str(python), str(HERE / "peer_datadriven.py"), json.dumps(job)], env=OFFLINE)
        except ProcessError as error:
            print(f"{name} is left out: {error}")
            self.figures.left_out.add(name)
            return
        told = json.loads(done.output.splitlines()[-1])
        self.figures.seconds[name] += told["steps"] if stepwise else [told["seconds"]]
        for other in ours:
            self.figures.compare(name, other)

    def halved(self) -> None:
        """AdaMerging's steps and whole merges in bfloat16, beside the same in float32."""
        self.entropy(HALF, bare=False)
        self.whole("regmean", {"name": "regmean", "images": self.images}, HALF)
        fisher = {"name": "fisher_merging", "images": self.images}
        for precision in ("float32", HALF):
            self.whole(SAMPLED, fisher, precision)
        self.whole(SUMMED, fisher | {"estimator": "batch_sum"})
        for name in (STEP, "regmean", SAMPLED):
            self.figures.compare(named(name, HALF), name)

    def beside_peer(self, python: Path | None) -> None:
        """FusionBench's three methods; what its Fisher merging computes is our estimator batch_sum."""
        self.peer(python, "adamerging", [STEP, named(STEP, HALF)])
        self.peer(python, "regmean", ["regmean", named("regmean", HALF)])
        self.peer(python, "fisher_merging", [SAMPLED, SUMMED, named(SAMPLED, HALF)])


def named(what: str, precision: str) -> str:
    return what if precision == "float32" else f"{what}, {precision}"


def opened(pool: Path) -> HuggingFaceClipVisionPool:
    return HuggingFaceClipVisionPool.from_yaml(pool)
