"""What clipfuse and FusionBench 0.2.33 both have, with equal settings: plain data, read in both environments.

Where their result is another, `differs` says why, with the file and line of their package; the tensors that it concerns
are left out of the comparison, or, where it concerns all, the two are not expected to agree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Pool = Literal["experts", "one", "pair"]
"""All experts and the base; the first expert and the base; two distant models and no base."""
Words = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One row: a chain of ours, an algorithm of theirs, and how near they must be."""

    method: str
    theirs: str
    """`module:Class` of FusionBench, or the name of a function of peer_fusionbench.py."""
    arguments: Words = field(default_factory=dict)
    """What their class gets."""
    settings: Words = field(default_factory=dict)
    """What our method gets."""
    edits: Sequence[Words] = ()
    finishes: Sequence[Words] = ()
    pool: Pool = "experts"
    tolerance: float = 1e-4
    """Largest ‖Δ_ours − Δ_theirs‖ / ‖Δ_theirs‖ over the tensors compared."""
    looser: str = ""
    """Why, where the tolerance is above 1e-4."""
    without: str = "$^"
    """Regular expression of the tensors that are not compared, for the reason in `differs`."""
    differs: str = ""
    """What their code does otherwise."""
    agrees: bool = True
    """Whether the tensors compared should agree."""
    random: bool = False
    """Whether entries are drawn: statistics are compared instead of tensors."""
    suffix: str = ""
    """Tells two rows of one chain apart."""

    @property
    def name(self) -> str:
        """`dare+task_arithmetic+expo (suffix)`."""
        chain = [*(edit["name"] for edit in self.edits), self.method, *(finish["name"] for finish in self.finishes)]
        return "+".join(chain) + (f" ({self.suffix})" if self.suffix else "")


DARE = {"name": "dare", "drop": 0.5}
DROP = {"sparsity_ratio": 0.5, "only_on_linear_weights": False, "rescale": True}
TIES = {"scaling_factor": 0.3, "threshold": 20, "remove_keys": [], "merge_func": "sum"}
ORDERED = {"shuffle_order": False, "seed": 0, "save_on_every_step": False, "evaluate_on_every_step": False}
CONTINUAL = "fusion_bench.method.opcm."
LEAF = "is_leaf_module (models/utils.py:11-12) skips parameters of modules that have children: class_embedding"


def comparisons(tasks: int) -> tuple[Comparison, ...]:
    """The rows for a pool of so many experts."""
    weights = [float(1 + task % 3) for task in range(tasks)]
    return (
        Comparison("simple_average", "fusion_bench.method:SimpleAverageAlgorithm"),
        Comparison(
            "weighted_average",
            "fusion_bench.method:WeightedAverageAlgorithm",
            {"normalize": True, "weights": weights},
            {"weights": weights},
        ),
        Comparison("task_arithmetic", "fusion_bench.method:TaskArithmeticAlgorithm", {"scaling_factor": 0.3}),
        Comparison("ties_merging", "fusion_bench.method:TiesMergingAlgorithm", TIES),
        Comparison(
            "ties_merging",
            "fusion_bench.method:TiesMergingAlgorithm",
            TIES | {"merge_func": "mean"},
            {"merge": "mean"},
            suffix="mean",
        ),
        Comparison("magmax", "fusion_bench.method:MagMaxAlgorithm", {"scaling_factor": 0.5}),
        Comparison(
            "model_stock",
            "fusion_bench.method:ModelStock",
            {"ignore_keys": []},
            differs="they add 1e-8 to ‖τ_i‖‖τ_j‖ (model_stock/model_stock.py:74): 2e-4 of a bias",
        ),
        Comparison(
            "consensus",
            "consensus",
            {"t": 0.4, "k": 2, "scaling_factor": 0.3},
            differs="masks by their tall_mask/utils.py, counted here: they ship no consensus, their TALL masks stop "
            "with a TypeError (utils/state_dict_arithmetic.py:675) before they would compare θ0 with τ instead of θ "
            "(tall_mask/task_arithmetic.py:49, 104-108)",
        ),
        Comparison(
            "linear_interpolation",
            "linear_interpolation",
            {"t": 0.3},
            {"t": 0.3},
            pool="pair",
            differs="their body is run: their algorithm asserts that a list equals 2 and never runs "
            "(linear/linear_interpolation.py:49-51)",
        ),
        Comparison(
            "slerp",
            "fusion_bench.method:SlerpMergeAlgorithm",
            {"t": 0.3},
            {"t": 0.3},
            pool="pair",
            differs="their angle is an arccos in float32 (slerp/slerp_utils.py:97)",
        ),
        Comparison(
            "simple_average",
            "fusion_bench.method:ExPOAlgorithm",
            {"extrapolation_factor": 0.1},
            finishes=[{"name": "expo", "alpha": 0.1}],
        ),
        Comparison(
            "task_arithmetic",
            "fusion_bench.method:DareTaskArithmetic",
            DROP | {"scaling_factor": 0.3},
            edits=[DARE],
            random=True,
        ),
        Comparison(
            "task_arithmetic",
            "fusion_bench.method:DareSimpleAverage",
            DROP,
            {"scaling_factor": 1 / tasks},
            edits=[DARE],
            random=True,
            suffix="λ = 1/T",
        ),
        Comparison(
            "ties_merging",
            "fusion_bench.method.dare:DareTiesMerging",
            DROP | TIES,
            edits=[DARE],
            random=True,
        ),
        Comparison("tsv_merging", "fusion_bench.method:TaskSingularVectorMerging", {"alpha": 1.0}),
        Comparison("iso_c", "fusion_bench.method:ISO_C_Merge", {"scaling_factor": 1.0}),
        Comparison(
            "iso_cts", "fusion_bench.method:ISO_CTS_Merge", {"scaling_factor": 1.0, "common_space_fraction": 0.8}
        ),
        Comparison("wudi", "fusion_bench.method:WUDIMerging", {"iter_num": 100}, {"steps": 100}),
        Comparison("doge_ta", "fusion_bench.method:DOGE_TA_Algorithm", {"subspace": 6, "K": 30, "lamda": 0.07}),
        Comparison(
            "task_arithmetic",
            "fusion_bench.method.singular_value_calibration:SingularValueCalibrationArithmeticTask",
            {"scaling_factor": 0.3, "alpha": 0.1},
            finishes=[{"name": "svc", "alpha": 0.1}],
        ),
        Comparison(
            "task_arithmetic",
            "fusion_bench.method:MagnitudeDiffPruningAlgorithm",
            {"prune_ratio": 0.5},
            {"scaling_factor": 1.0},
            edits=[{"name": "magnitude_prune", "keep": 0.5}],
            pool="one",
            without=r"bias|norm|embedding|layrnorm",
            differs="they rank within each row (pruning/prune_utils.py:81-83), leave all but Linear weights at the "
            "base's (magnitude_diff_pruning.py:145-178), and their own configuration, rescale: false, gives the base "
            "(:173-177 multiplies by False)",
            agrees=False,
        ),
        Comparison("continual_average", CONTINUAL + "weight_average:ContinualWeightAverageForCLIP", ORDERED),
        Comparison(
            "continual_task_arithmetic",
            CONTINUAL + "task_arithmetic:ContinualTaskArithmeticForCLIP",
            ORDERED | {"scaling_factor": 0.3},
            {"scaling_factor": 0.3},
        ),
        Comparison(
            "continual_ties",
            CONTINUAL + "ties_merging:ContinualTiesMergingForCLIP",
            ORDERED | TIES,
            {"scaling_factor": 0.3, "accumulate": 0.3},
            tolerance=1e-3,
            looser="they recover what is merged so far as θ − θ0 in float32, which moves entries across the floor",
        ),
        Comparison(
            "opcm",
            CONTINUAL + "opcm:OPCMForCLIP",
            ORDERED | {"alpha": 0.5},
            tolerance=1e-3,
            looser="they recover Δ as θ − θ0 in float32 at every step, which turns singular vectors of close values",
            without="class_embedding",
            differs=f"{LEAF} keeps the first expert's (opcm/opcm.py:148)",
        ),
        Comparison(
            "dop",
            "fusion_bench.method:ContinualDOPForCLIP",
            ORDERED | {"num_steps": 20, "alpha": 0.8, "ema_beta": 0.999, "svd_epsilon": 0.99999},
            {"steps": 20},
            without="class_embedding",
            differs=f"{LEAF} stays the base's (dop/dop.py:144)",
        ),
    )
