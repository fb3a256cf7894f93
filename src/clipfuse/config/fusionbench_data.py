"""FusionBench's words for methods that look at data."""

from collections.abc import Mapping
from typing import Any

Tree = dict[str, Any]

METHODS: dict[str, Tree] = {
    "clip_layer_wise_adamerging": {"name": "adamerging"},
    "adamerging/clip": {"name": "adamerging"},
    "clip_task_wise_adamerging": {"name": "adamerging", "grain": "task"},
    "clip_layer_wise_adamerging_surgery": {"name": "adamerging"},
    "surgery/adamerging_surgery": {"name": "adamerging"},
    "clip_fisher": {"name": "fisher_merging", "estimator": "batch_sum"},
    "clip_fisher_merging": {"name": "fisher_merging", "estimator": "batch_sum"},
    "fisher_merging/clip_fisher_merging": {"name": "fisher_merging", "estimator": "batch_sum"},
    "clip_regmean": {"name": "regmean"},
    "regmean/clip_regmean": {"name": "regmean"},
    "clip_regmean_plusplus": {"name": "regmean_plusplus", "post_layernorm": "base"},
    "regmean_plusplus/clip_regmean_plusplus": {"name": "regmean_plusplus", "post_layernorm": "base"},
    "clip_concrete_task_arithmetic": {"name": "concrete"},
    "concrete_subspace/clip_concrete_task_arithmetic": {"name": "concrete"},
    "clip_concrete_task_wise_adamerging": {"name": "concrete", "then": "task"},
    "concrete_subspace/clip_concrete_task_wise_adamerging": {"name": "concrete", "then": "task"},
    "clip_concrete_layer_wise_adamerging": {"name": "concrete", "then": "layer"},
    "concrete_subspace/clip_concrete_layer_wise_adamerging": {"name": "concrete", "then": "layer"},
    "ada_svd/clip_vision": {"name": "ada_svd"},
    "trust_region/clip_task_arithmetic": {"name": "trust_region"},
    "fw_merging/fw_hard": {"name": "fw_merging", "score": "cosine", "decay": True},
    "fw_merging/fw_soft": {"name": "fw_merging", "mode": "soft"},
}
"""Their method, as a file or by its name → ours, with the settings that it stands for."""

SURGERY = ("clip_layer_wise_adamerging_surgery", "surgery/adamerging_surgery")
"""Those of them that learn modules after the merge."""

ENTROPY = {"max_steps": "steps", "batch_size": "batch"}
SETTINGS: dict[str, dict[str, str]] = {
    "adamerging": ENTROPY | {"init_values": "init"},
    "concrete": ENTROPY
    | {"scaling_factor": "coefficient", "eval_mask_type": "mask", "max_adamerging_steps": "ada_steps"},
    "fisher_merging": {"num_fisher_examples": "images", "minimal_fisher_weight": "floor"},
    "regmean": {"num_regmean_examples": "images", "reduce_non_diagonal_ratio": "shrink"},
    "regmean_plusplus": {"num_regmean_examples": "images", "reduce_non_diagonal_ratio": "shrink"},
    "ada_svd": {"num_samples": "images", "gate_k": "k"},
    "trust_region": {"threshold_quantile": "quantile", "max_samples": "images"},
    "fw_merging": {
        "max_iters": "steps",
        "dataset_size": "images",
        "scaling_factor": "init",
        "ada_iters": "inner_steps",
    },
}
"""Our method → their setting → ours."""

ALWAYS: Mapping[str, tuple[Any, ...]] = {
    "optimizer": ("adam",), "clamp_weights": (False,), "normalize_fisher_weight": (True,), "weight_transpose": (True,),
    "exclude_param_names_regex": ([],), "average_experts": (False,), "merge_dtype": (None,), "mask_checkpoint": (None,),
    "skip_training": (False,), "init_weight": (None, ""), "tasks": ([], None), "adamerging_lr": (1e-3,),
    "base_lr": (1,), "loss_fn": ("cross_entropy",), "merge_fn": ("task_arithmetic", "adamerging"),
}  # fmt: skip
"""Their setting → the values of it that ours always has: left out, where any other is an unknown key."""

MEANINGLESS = (
    *("tie_weights", "strict", "devices", "device", "num_workers", "fast_dev_run", "cache_dir", "save_merging_weights"),
    *("save_interval", "dataloader_kwargs", "upscaling_accelerator", "eval_iterations", "max_num_models", "_target_"),
    *("ada_coeff", "ada_loss"),
)
"""Their settings that have no meaning here."""

MASKS = {"continuous": "sample", "mean": "mean"}
ON_TEST = ("adamerging", "concrete")
"""Methods of ours whose theirs learns on the test images."""


def translate_data_method(tree: Tree, method: Tree, notes: list[str]) -> tuple[Tree, Tree]:
    """The tree and its method in our words, if the method is one of these; notes are added."""
    theirs = str(method.get("name", ""))
    if theirs not in METHODS:
        return tree, method
    ours = dict(METHODS[theirs])
    name = ours["name"]
    notes.append(f"method {theirs} is read as {', '.join(f'{key}={value}' for key, value in ours.items())}")
    if name in ON_TEST and "images" not in method:
        notes.append(f"{theirs} learns on the test images, this on val unless method.images=test says otherwise")
    steps = method.pop("surgery_steps", None)
    if theirs in SURGERY:
        after = {"name": "surgery"} | ({"steps": steps} if steps is not None else {})
        notes.append("what it learns for each task is read as after=surgery")
        tree = {**tree, "after": tree.get("after") or after}
    if name == "fw_merging" and isinstance(method.get("step_size"), (int, float)):  # theirs is multiplied by the other
        method["step_size"] = method["step_size"] * (method.get("scaling_factor") or 0.3)
        if ours.get("mode") == "soft":
            del method["step_size"]
    for key, value in method.items():
        if key == "name" or key in MEANINGLESS or value in ALWAYS.get(key, ()):
            continue
        if key == "eval_mask_type":
            value = MASKS.get(value, value)
        if name == "ada_svd" and key == "scaling_factor" and value is None:
            continue
        ours[SETTINGS[name].get(key, key)] = value
    return tree, ours
