"""The README of an expert: a Hugging Face model card made from what its fine-tuning wrote in `finetune.json`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.card import place, table
from clipfuse.checkpoints.run_file import PRETRAINED, as_yaml, hub_id, is_on_hub, pinned
from clipfuse.config.presets import SHIPPED

HERE = "this/folder"

ONLY_LORA = ("rank", "lora_alpha", "lora_dropout", "target_modules")
"""Settings that count with train=lora alone."""

TRAINED = {
    "full": "the whole vision encoder",
    "attention": "the weight matrices of its attentions",
    "lora": "the factors of a LoRA",
}
"""What a recipe's `train` means, in words."""

LINEARISED = {
    "linearised": (
        "It was trained linearised: its weights stand for the first-order expansion of the encoder in its weights "
        "around the base's. `transformers` alone would run them as an ordinary model, which is another function; "
        "clipfuse runs the linearised one."
    ),
    "linearised-lora": (
        "Each adapted layer was trained linearised, as the first-order expansion in its factors around their initial "
        "values. peft does not read such an adapter; clipfuse does, and knows the exact weights."
    ),
}
"""Kind → what one has to know before one runs it."""


def expert_card(facts: Mapping[str, Any]) -> str:
    """Markdown with front matter: what was trained on what and how, what came out, how to load it and to get it again.

    The same facts give the same text; what they do not know is not in it. Paths of this machine stay in it.

    Args:
        facts: `finetune.json`.
    """
    sections = (opening, data, settings, results, loading, membership, again, made_with)
    return f"---\n{front_matter(facts)}---\n\n" + "\n".join(filter(None, (section(facts) for section in sections)))


def front_matter(facts: Mapping[str, Any]) -> str:
    """The YAML that the hub reads; what is not known is not in it."""
    kind, path = facts["kind"], facts["base"]["path"]
    tags = ["clipfuse", *(["lora"] if "lora" in kind else []), *(["linearised"] if "linearised" in kind else [])]
    tree: dict[str, Any] = {
        "library_name": {"full": "transformers", "lora": "peft"}.get(kind, "clipfuse"),
        "pipeline_tag": "image-feature-extraction",
        "tags": tags,
    }
    if is_on_hub(path) and "://" not in path:  # Hugging Face's
        tree |= {"base_model": hub_id(path), "base_model_relation": "adapter" if "lora" in kind else "finetune"}
    if datasets := list(dict.fromkeys(task["hub_dataset"] for task in facts["tasks"] if task.get("hub_dataset"))):
        tree["datasets"] = datasets
    return as_yaml(tree)


def opening(facts: Mapping[str, Any]) -> str:
    tasks, base, sizes = facts["tasks"], facts["base"], facts.get("parameters")
    names = listed([task["name"] for task in tasks])
    jointly = "jointly " if len(tasks) > 1 else ""
    classes = listed([f"{task['classes']:,} classes" + (f" of {task['name']}" if jointly else "") for task in tasks])
    what = TRAINED[facts["recipe"]["train"]]
    counts = f", {sizes['trained']:,} parameters" if sizes else ""
    counts += f" (the encoder has {sizes['total']:,})" if sizes and sizes["trained"] != sizes["total"] else ""
    norm = (facts.get("task_vector") or {}).get("norm")
    lines = [
        f"# CLIP vision encoder fine-tuned {jointly}on {names}",
        "",
        f"The vision encoder of {place(base)}, fine-tuned {jointly}on {names} with clipfuse {facts['clipfuse']}: "
        f"{facts['steps']:,} steps against the frozen zero-shot head{'s' if jointly else ''} for {classes}, which the "
        f"base's text encoder makes from their names. What was trained: {what}{counts}. Text encoder, projections and "
        "logit_scale are the base's, unchanged, and not in here"
        f"{', nor is the rest of the vision encoder' if 'lora' in facts['kind'] else ''}.",
        "",
    ]
    if start := facts.get("start"):
        lines += [f"It began from an expert, not from the base: {begun_from(start)}.", ""]
    if norm is not None:
        lines += [f"The task vector, its weights minus the base's, has norm {norm:.4g}.", ""]
    lines += [LINEARISED[facts["kind"]], ""] if facts["kind"] in LINEARISED else []
    return "\n".join(lines)


def begun_from(start: Mapping[str, Any]) -> str:
    """Where a sequence went on."""
    return f"that of {start['before'][-1]} (sha256 of its model.safetensors `{start['sha256']}`)"


def data(facts: Mapping[str, Any]) -> str:
    """The images that were trained on, and what tells that it was these."""
    tasks = facts["tasks"]
    columns = ["task", "from", "split", "images", "held out for val", "classes", "licence"]
    rows = []
    for task in tasks:
        revision = f" at `{task['revision']}`" if task.get("revision") else ""
        source = f"`{task['hub_dataset']}`{revision}" if task.get("hub_dataset") else "local"
        held = f"{task['held_out']:,}" if task.get("held_out") else ""
        licence = task.get("licence") or ""
        count = f"{task['images']:,}"
        rows.append([task["name"], source, task["split"], count, held, f"{task['classes']:,}", licence])
    lines = ["## What it was trained on", "", *table(*filled(columns, rows)), ""]
    none = not any(task.get("held_out") for task in tasks)
    lines += ["No training images were held out for validation.", ""] if none else []
    digests = [[task["name"], *(code(task.get(key)) for key in ("fingerprint", "rows", "head"))] for task in tasks]
    return "\n".join([*lines, *table(*filled(["task", "images sha256", "rows sha256", "head"], digests)), ""])


def settings(facts: Mapping[str, Any]) -> str:
    """The recipe's settings that count, one a row."""
    recipe, names = facts["recipe"], [task["name"] for task in facts["tasks"]]
    useless = ("name", *(ONLY_LORA if recipe["train"] != "lora" else ()))
    shown = {key: plain(value, names) for key, value in recipe.items() if key not in useless and value is not None}
    name = f"By the recipe `{Path(recipe['name']).stem}`, with these settings" if recipe.get("name") else "The settings"
    mode = f", mode {facts['mode']}" if facts["mode"] != "separate" else ""
    rows = [[f"`{key}`", value] for key, value in shown.items()]
    return "\n".join(["## How it was trained", "", f"{name}{mode}:", "", *table(["setting", "value"], rows), ""])


def plain(value: Any, tasks: Sequence[str]) -> str:
    """A setting for people: of a mapping what is on, and of one by task these tasks."""
    if isinstance(value, Mapping):
        chosen = {key: value[key] for key in tasks if key in value} or value
        return ", ".join(f"{key} {plain(part, tasks)}" for key, part in chosen.items() if part) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def results(facts: Mapping[str, Any]) -> str:
    """Accuracy on val before and after, and the curves."""
    held = {task["name"]: task.get("held_out") for task in facts["tasks"]}
    columns = ["task", "val images", "accuracy before, %", "after, %", "loss before, nats", "after, nats"]
    rows = []
    for task, val in facts["val"].items():
        shares = [f"{100 * val[key]:.1f}" for key in ("before", "after")]
        losses = ["" if val.get(key) is None else f"{val[key]:.3f}" for key in ("loss_before", "loss_after")]
        images = f"{val['n']:,}, {'held out of train' if held.get(task) else 'of its val split'}"
        rows.append([task, images, *shares, *losses])
    lines = ["## What came out", ""]
    if rows:
        lines += [*table(*filled(columns, rows)), ""]
        lines += ["These are validation images, not test: the figures are not to be set beside those on test.", ""]
    else:
        lines += ["There were no validation images, so nothing was measured.", ""]
    lines += ["![curves](curves.svg)", ""] if (facts.get("curve") or {}).get("loss") else []
    return "\n".join(lines)


def loading(facts: Mapping[str, Any]) -> str:
    base, names = facts["base"], names_of(facts)
    lines = ["from transformers import CLIPVisionModel", ""]
    if facts["kind"] == "lora":
        lines = ["from peft import PeftModel", *lines, f"base = CLIPVisionModel.from_pretrained({arguments(base)})"]
        lines += [f'model = PeftModel.from_pretrained(base, "{HERE}")']
    else:
        lines += [f'model = CLIPVisionModel.from_pretrained("{HERE}")']
    snippet = ["```python", *lines, "```", ""] if facts["kind"] not in LINEARISED else []
    command = f"clipfuse evaluate {HERE} base={pinned(base)} 'taskpool.tasks=[{','.join(names)}]'"
    scores = "With the base's text encoder it classifies by names in words; on the test images of its tasks:"
    return "\n".join(["## Load it", "", *snippet, scores, "", f"    {command}", ""])


def membership(facts: Mapping[str, Any]) -> str:
    """A pool of the base and this."""
    names = names_of(facts)
    expert = {"name": names[0] if len(names) == 1 else "joint", "path": HERE}
    models = [{"name": PRETRAINED, "path": pinned(facts["base"])}, expert]
    pool = as_yaml({"type": "huggingface_clip_vision", "models": models}).splitlines()
    command = "clipfuse merge method=task_arithmetic modelpool=pool.yaml --out merged/"
    told = f"Put this into `pool.yaml`, with other experts of the same base, for `{command}`:"
    return "\n".join(["## Merge it", "", told, "", "```yaml", *pool, "```", ""])


def again(facts: Mapping[str, Any]) -> str:
    """The fine-tuning as a file that clipfuse takes."""
    lines = ["## Make it again", ""]
    lines += ["Put this into `recipe.yaml`; `clipfuse finetune recipe.yaml --out again` trains the same again:"]
    lines += ["", "```yaml", *finetune_file(facts).splitlines(), "```", ""]
    if any(task["hub_dataset"] is None and not task["name"].startswith("tiny-") for task in facts["tasks"]):
        lines += ["A task that is described in a YAML file of its own goes into `task` by the path of that file.", ""]
    lines += ["Images, their order and all random numbers are the same; other machines and versions round otherwise."]
    return "\n".join([*lines, ""])


def finetune_file(facts: Mapping[str, Any]) -> str:
    """The YAML of `clipfuse finetune`, every setting written out and the base's revision pinned."""
    names, mode = [*(facts.get("start") or {}).get("before", ()), *names_of(facts)], facts["mode"]
    tree = {"task": names[0] if len(names) == 1 and mode == "separate" else names, "base": pinned(facts["base"])}
    tree |= {"mode": mode} if mode != "separate" else {}
    # all settings are there, so that no preset has to be; its name may be that of the author's own file
    name = facts["recipe"].get("name")
    tree |= {"recipe": name} if (SHIPPED / "recipe" / f"{name}.yaml").is_file() else {}
    tree |= {key: value for key, value in facts["recipe"].items() if key != "name"} | facts.get("validation", {})
    return as_yaml(tree)


def made_with(facts: Mapping[str, Any]) -> str:
    """The base's files and the versions of what computed."""
    base = facts["base"]
    rows = [["base", code(pinned(base))], *([f"base, {file}", code(at)] for file, at in sorted(base["files"].items()))]
    rows += [["base, identity", code(base.get("identity"))], ["clipfuse", facts["clipfuse"]]]
    rows += [[name, version] for name, version in facts["versions"].items()]
    known = [[name, value] for name, value in rows if value]
    more = "`finetune.json` beside this file holds all of this, and the curves in figures."
    return "\n".join(["## Made with", "", *table(["what", "which"], known), "", more, ""])


def filled(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows without the columns that nothing is known in."""
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]


def names_of(facts: Mapping[str, Any]) -> list[str]:
    return [task["name"] for task in facts["tasks"]]


def arguments(base: Mapping[str, Any]) -> str:
    """What `from_pretrained` takes for a base; a place that only clipfuse can open stays open."""
    path = base["path"]
    if "://" in path:
        return '"the/base"'
    if not is_on_hub(path):
        return f'"{path}"'
    revision = base.get("revision") or path.partition("@")[2]
    return f'"{hub_id(path)}"' + (f', revision="{revision}"' if revision else "")


def code(found: str | None) -> str:
    return f"`{found}`" if found else ""


def listed(words: Iterable[str]) -> str:
    """a, b and c."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
