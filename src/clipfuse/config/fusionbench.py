"""FusionBench's words (0.1 and 0.2) for ours: one table, one line of notice for each that was used."""

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from clipfuse.config.fusionbench_data import translate_data_method
from clipfuse.config.fusionbench_pools import translate_modelpool, translate_taskpool
from clipfuse.errors import ConfigError

Tree = dict[str, Any]


def same(value: Any) -> Any:
    return value


def per_cent(value: Any) -> Any:
    """FusionBench's 20 means per cent; ours is a share."""
    return value / 100 if isinstance(value, (int, float)) and value > 1 else value


def rest(value: Any) -> Any:
    """FusionBench's share that goes; ours is the share that stays."""
    return 1 - value if isinstance(value, (int, float)) else value


METHODS: dict[str, str] = {
    "clip_task_arithmetic": "task_arithmetic",
    "clip_simple_average": "simple_average",
    "clip_weighted_average": "weighted_average",
    "ties_merging_clip": "ties_merging",
    "linear/weighted_average": "weighted_average",
    "magmax_merging": "magmax",
    "magmax/magmax": "magmax",
    "DOGE_TA/DOGE_TA": "doge_ta",
    "task_singular_vector/TaskSingularVectorMerging": "tsv_merging",
    "isotropic_merging/iso_c": "iso_c",
    "isotropic_merging/iso_cts": "iso_cts",
    "model_stock/model_stock": "model_stock",
    "wudi/wudi": "wudi",
    "doge_ta/doge_ta": "doge_ta",
    "linear/linear_interpolation": "linear_interpolation",
    "slerp/slerp": "slerp",
    "opcm/opcm": "opcm",
    "opcm/weight_average": "continual_average",
    "opcm/task_arithmetic": "continual_task_arithmetic",
    "opcm/ties_merging": "continual_ties",
    "dop/dop": "dop",
}
"""Their name of a method → ours. `dare/x` is the edit dare and the method x; for finishes see `unwrap_finish`."""

CALIBRATED = {"task_singular_vector": ("tsv_merging", 1.0), "wudi": ("wudi", 1.0), "iso_cts": ("iso_cts", 0.2)}
"""Theirs after `singular_value_calibration/` → our method and the alpha of their preset; any other is itself at 0.1."""

CONTINUAL = ("continual_average", "continual_task_arithmetic", "continual_ties", "dop", "opcm")
"""Methods of ours whose theirs say how models arrive, and what is to be kept of every step."""

SETTINGS: dict[tuple[str, str], tuple[str, Callable[[Any], Any]]] = {
    ("ties_merging", "threshold"): ("keep", per_cent),
    ("ties_merging", "merge_func"): ("merge", same),
    ("dare", "sparsity_ratio"): ("drop", same),
    ("tsv_merging", "alpha"): ("scaling_factor", same),
    ("wudi", "iter_num"): ("steps", same),
    ("doge_ta", "lamda"): ("eta", same),
    ("doge_ta", "K"): ("keep", per_cent),
    ("magnitude_prune", "prune_ratio"): ("keep", rest),
    ("expo", "extrapolation_factor"): ("alpha", same),
    ("continual_ties", "threshold"): ("keep", per_cent),
    ("continual_ties", "merge_func"): ("merge", same),
    ("dop", "num_steps"): ("steps", same),
    ("dop", "ema_beta"): ("ema", same),
    ("dop", "svd_epsilon"): ("energy", same),
    ("dop", "svd_proj_space"): ("space", same),
    **{(name, "shuffle_order"): ("shuffle", same) for name in CONTINUAL},
}
"""(our method, edit or finish, their setting) → (our setting, conversion of the value)."""

FIXED: dict[tuple[str, str], tuple[Any, ...]] = {
    ("slerp", "DOT_THRESHOLD"): (0.9995,),
    ("slerp", "epsilon"): (1e-8, "1e-8"),  # a string to YAML 1.1
    ("dop", "mgda"): (True,),
    **{(name, key): (True, False) for name in CONTINUAL for key in ("save_on_every_step", "evaluate_on_every_step")},
    **{(name, "seed"): (None,) for name in CONTINUAL},
}
"""(our method, their setting) → the values of it that ours always has: left out, where any other is an unknown key."""

RUN: dict[str, str] = {"merged_model_save_path": "out"}
"""Their key of a whole run → ours."""

IGNORED = ("fabric", "fast_dev_run", "dry_run", "print_config", "report_save_path", "path", "hydra", "_recursive_")
"""Keys of a whole run that have no meaning here; what is ignored is named."""

PRESETS = re.compile(
    r"(CLIPVisionModelPool/|CLIPVisionModelTaskPool/|clip-vit-classification_)+|_model_only$|(?<=TA8)_(B16|L14)$"
)
"""What FusionBench puts around the names of pools and suites that we call `clip-vit-base-patch32_TA8` and `TA8`."""


def preset_name(group: str, value: str) -> str:
    """FusionBench's name of a preset → ours."""
    return PRESETS.sub("", value) if group in ("modelpool", "taskpool") else value


def translate(tree: Tree) -> tuple[Tree, list[str]]:
    """A run's tree in our words, and a one-line note for each foreign word."""
    notes: list[str] = []
    tree = deepcopy(tree)
    for theirs, ours in RUN.items():
        if theirs in tree:
            value = tree.pop(theirs)
            if value is not None:
                tree[ours] = value
            notes.append(f"{theirs} is read as {ours}")
    for key in IGNORED:
        if key in tree:
            del tree[key]
            notes.append(f"{key} of FusionBench has no meaning here and is ignored")
    if isinstance(tree.get("method"), dict):
        tree = translate_method(tree, notes)
    if isinstance(tree.get("modelpool"), dict):
        tree["modelpool"] = translate_modelpool(tree["modelpool"], notes)
    if isinstance(tree.get("taskpool"), dict):
        tree["taskpool"] = translate_taskpool(tree["taskpool"], notes)
    return tree, notes


def translate_method(tree: Tree, notes: list[str]) -> Tree:
    tree = {key: value for key, value in tree.items() if value is not None or key not in ("edits", "finishes")}
    tree, method = unwrap_finish(tree, dict(tree["method"]), notes)
    tree, method = translate_data_method(tree, method, notes)
    name = str(method.get("name", ""))
    if name.startswith("dare/"):
        edit: Tree = {"name": "dare"}
        if method.get("only_on_linear_weights") is False:
            del method["only_on_linear_weights"]
        if "sparsity_ratio" in method:
            edit["drop"] = method.pop("sparsity_ratio")
        if "rescale" in method:
            edit["rescale"] = method.pop("rescale")
        inner = name.removeprefix("dare/")
        method["name"] = "continual_average" if inner == "simple_average" else inner  # the one that takes edits
        tree = {**tree, "edits": [edit, *tree.get("edits", [])]}
        notes.append(f"{name} is read as the edit dare and the method {method['name']}")
    elif name in METHODS:
        method["name"] = METHODS[name]
        notes.append(f"method {name} is read as {METHODS[name]}")
    for (owner, theirs), values in FIXED.items():
        if method.get("name") == owner and theirs in method and method[theirs] in values:
            notes.append(f"method.{theirs}={method.pop(theirs)} is what {owner} always has")
    lists = [(tree.get(where), where) for where in ("edits", "finishes")]
    steps = [(part, where) for parts, where in lists if isinstance(parts, list) for part in parts]
    for part, where in [(method, "method"), *steps]:
        if not isinstance(part, dict):
            continue
        for (owner, theirs), (ours, convert) in SETTINGS.items():
            if part.get("name") == owner and theirs in part:
                found = part.pop(theirs)
                if ours in part:
                    raise ConfigError(f"{where}: {theirs} and {ours} are one setting; give one of them")
                part[ours] = convert(found)
                notes.append(f"{where}.{theirs}={found} is read as {ours}={part[ours]}")
    return {**tree, "method": method}


def unwrap_finish(tree: Tree, method: Tree, notes: list[str]) -> tuple[Tree, Tree]:
    """Their `singular_value_calibration/x` and `linear/expo` as a method with a finish: the tree and its method."""
    name = str(method.get("name", ""))
    settings = {key: value for key, value in method.items() if key not in ("name", "accelerator", "base_method")}
    if name.startswith("singular_value_calibration/"):
        inner = name.removeprefix("singular_value_calibration/")
        ours, alpha = CALIBRATED.get(inner, (inner.replace("dare_", "dare/"), 0.1))
        finish = {"name": "svc", "alpha": settings.pop("alpha", alpha)}
        settings.update(method.get("base_method") or {})
        settings.pop("_target_", None)
    elif name in ("linear/expo", "expo"):
        ours = "simple_average"
        finish = {"name": "expo", "alpha": settings.pop("extrapolation_factor", 0.1)}
    else:
        return tree, method
    notes.append(f"{name} is read as the method {ours} and the finish {finish['name']}")
    return {**tree, "finishes": [finish, *tree.get("finishes", [])]}, {"name": ours, **settings}
