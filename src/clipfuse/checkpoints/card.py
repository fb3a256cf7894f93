"""The README of a merged model: a Hugging Face model card made from the recipe, and from what is known once it is
published."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipfuse.checkpoints.run_file import PRETRAINED, as_yaml, hub_id, is_on_hub, run_file

UNKNOWN = "not known"

SEEN = {
    "train_images": "training images",
    "train_labels": "training labels",
    "val_images": "validation images",
    "val_labels": "validation labels",
    "test_images": "test images",
    "test_labels": "test labels",
}
"""What a recipe's `uses` mean, in words."""

LINEARISED = (
    " It is linearised: its features are the first-order expansion around the base's weights, which clipfuse computes; "
    "transformers alone would run it as a non-linear model, with other features."
)

PER_TASK = (
    " Behind it stands a small module for each task, which corrects features of that task's images: inference must "
    "know the task. clipfuse runs both; transformers alone runs the encoder WITHOUT the modules: another model."
)

TRANSDUCTIVE = (
    "**Transductive: the method saw the test images. Its accuracy on them is not what it would be on images that it "
    "has not seen.**"
)


@dataclass(frozen=True)
class Publication:
    """What the card of a published model says besides the recipe."""

    repo: str
    """`owner/name` on the hub."""
    full: bool = False
    """Whether the repository holds a full CLIP, with text encoder, tokenizer and processor."""
    projection: bool = False
    """Whether the visual projection was merged, too."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Published weights file → sha256."""
    licences: Mapping[str, str | None] = field(default_factory=dict)
    """Model of the pool → its licence, None where it is not known."""
    papers: Mapping[str, str] = field(default_factory=dict)
    """Rule → where it was published, Markdown."""
    results: str = ""
    """Tables and notes, Markdown."""
    tasks: Sequence[str] = ()
    """Tasks that results are of."""
    evaluate: str = "taskpool=TA8"
    """What `clipfuse evaluate` takes besides the model."""
    datasets: Sequence[str] = ()
    """Their data sets on the hub."""
    model_index: Sequence[Mapping[str, Any]] = ()
    """The hub's form of the results."""


def model_card(recipe: Mapping[str, Any], publication: Publication | None = None) -> str:
    """Markdown with front matter: what it is, how it was made of what, what data that saw, how to load and to check it.

    The same arguments give the same text. Paths of this machine stay in it, unless the recipe has none any more.
    """
    sections = [
        opening(recipe, publication),
        how(recipe, publication.papers if publication else {}),
        pool_section(recipe["pool"]),
        results_section(publication) if publication else "",
        licences_section(publication.licences) if publication else "",
        loading(recipe, publication),
        recipe_section(recipe, publication),
    ]
    return f"---\n{front_matter(recipe, publication)}---\n\n" + "\n".join(section for section in sections if section)


def front_matter(recipe: Mapping[str, Any], publication: Publication | None = None) -> str:
    """The YAML that the hub reads; what is not known is not in it."""
    paths = [member["path"] for member in base_first(recipe["pool"]) if is_on_hub(member.get("path"))]
    parents = list(dict.fromkeys(hub_id(path) for path in paths if "://" not in path))  # Hugging Face's
    facts: dict[str, Any] = {
        "library_name": "clipfuse" if recipe.get("linearised") or recipe.get("after") else "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["merge", "clipfuse"],
    }
    if parents:
        facts |= {"base_model": parents, "base_model_relation": "merge"}
    if publication:
        if licence := common_licence(publication.licences):
            facts["license"] = licence
        if publication.datasets:
            facts["datasets"] = publication.datasets
        if publication.model_index:
            facts["model-index"] = publication.model_index
    return as_yaml(facts)


def opening(recipe: Mapping[str, Any], publication: Publication | None) -> str:
    title = publication.repo.rpartition("/")[2] if publication else f"CLIP vision encoder merged by {chain(recipe)}"
    experts = [member["name"] for member in recipe["pool"] if not member["name"].startswith("_")]
    count = f"{len(experts)} expert{'s' if len(experts) != 1 else ''}"
    base = "".join(f" of the base {place(member)}" for member in recipe["pool"] if member["name"] == PRETRAINED)
    there = "and in this repository" if publication and publication.full else "and not in here"
    more = " The visual projection was merged, too, and is in here." if publication and publication.projection else ""
    more += (LINEARISED if recipe.get("linearised") else "") + (PER_TASK if recipe.get("after") else "")
    return (
        f"# {title}\n\n"
        f"One CLIP vision encoder, merged by `{chain(recipe)}` from {count}{base} with clipfuse "
        f"{recipe['clipfuse']}: {', '.join(experts)}. With CLIP's text encoder it classifies images by class names in "
        f"words. The text side and logit_scale are the base's, unchanged, {there}.{more}\n"
    )


def how(recipe: Mapping[str, Any], papers: Mapping[str, str]) -> str:
    """All rules with all settings, and the data that they saw."""
    kinds = (("edit", "edits"), ("method", "method"), ("finish", "finishes"), ("after", "after"))
    steps = [(kind, step) for kind, key in kinds for step in as_list(recipe.get(key, ()))]
    rows = [[kind, f"`{step['name']}`", settings(step), papers.get(step["name"], "")] for kind, step in steps]
    header = ["step", "rule", "settings", "paper"]
    shown = header if papers else header[:3]
    lines = ["## How it was made", "", *table(shown, [row[: len(shown)] for row in rows]), ""]
    lines += ["Edits change each expert's task vector, finishes the merged one.", ""] if len(steps) > 1 else []
    dtype = ", ".join(as_list(recipe["dtype"]))
    lines.append(f"Seed {recipe.get('seed', 0)}; the weights are {dtype}.")
    for plugin in recipe.get("plugins", ()):
        lines.append(f"Rules come from the plug-in `{plugin['file']}` (sha256 {plugin['sha256'] or UNKNOWN}).")
    seen = ", ".join(SEEN.get(str(use), str(use)) for use in recipe["uses"]) or "none, weights only"
    lines += ["", f"Data that the method and the choice of its settings saw: {seen}."]
    lines += ["", TRANSDUCTIVE] if any(use.startswith("test") for use in recipe["uses"]) else []
    warnings = [f"- {warning}" for warning in recipe.get("warnings", ())]
    lines += ["", "What was remarked on the pool:", "", *warnings] if warnings else []
    return "\n".join([*lines, ""])


def pool_section(pool: Sequence[Mapping[str, Any]]) -> str:
    """Every model that was merged, and what tells that it was this one."""
    rows = []
    for member in base_first(pool):
        files = member.get("files") or {}
        digests = "<br>".join(f"{name} `{digest or UNKNOWN}`" for name, digest in sorted(files.items()))
        revision = f"`{member['revision']}`" if member.get("revision") else ""
        rows.append([named(member["name"]), place(member), revision, digests])
    lines = ["## What it was made of", "", *table(["model", "from", "revision", "sha256"], rows), ""]
    if any(member.get("local") for member in pool):
        lines += ["Of folders on the author's machine only the last part is named; sha256 say what was in them.", ""]
    return "\n".join(lines)


def results_section(publication: Publication) -> str:
    return f"## Results\n\n{publication.results}" if publication.results else ""


def licences_section(licences: Mapping[str, str | None]) -> str:
    """Models by licence."""
    groups: dict[str, list[str]] = {}
    for name, licence in licences.items():
        groups.setdefault(licence or UNKNOWN, []).append(named(name))
    lines = [f"- {licence}: {', '.join(names)}" for licence, names in groups.items()]
    said = "" if common_licence(licences) else "They do not give one licence for this model; ask their authors.\n"
    return "\n".join(["## Licences of the models that were merged", "", *lines, "", said])


def loading(recipe: Mapping[str, Any], publication: Publication | None) -> str:
    where = publication.repo if publication else "this/folder"
    lines = ["from transformers import CLIPVisionModel", "", f'model = CLIPVisionModel.from_pretrained("{where}")']
    if recipe.get("linearised") or recipe.get("after"):
        lines = ["import clipfuse", "", 'encoder = clipfuse.load("this/folder").encoder()']
        lines += [f"# the folder is that of: hf download {where} --local-dir this/folder"] if publication else []
        lines += ['features = encoder.features(pixels, "task")'] if recipe.get("after") else []
    elif publication and publication.full:
        lines += ["", "from transformers import pipeline", ""]
        lines += [f'classify = pipeline("zero-shot-image-classification", model="{where}")']
        lines += ['classify("cat.png", candidate_labels=["cat", "dog"], hypothesis_template="a photo of a {}.")']
    elif publication is None:
        lines += ["", "import clipfuse", "", f'merged = clipfuse.load("{where}")']
    own = next((m for m in recipe["pool"] if m["name"] == PRETRAINED and m.get("local")), None)
    base = f" base=./{own['local']}" if own and not (publication and publication.full) else ""
    words = publication.evaluate if publication else Publication.evaluate
    return "\n".join(
        ["## Load it", "", "```python", *lines, "```", "", f"    clipfuse evaluate {where} {words}{base}", ""]
    )


def recipe_section(recipe: Mapping[str, Any], publication: Publication | None) -> str:
    """The recipe as a file that clipfuse takes, and whole as JSON."""
    weights = publication.weights if publication else {}
    rows = [[name, f"`{digest}`"] for name, digest in weights.items()]
    lines = ["## Check it", ""]
    lines += ["Put this into `recipe.yaml`; `clipfuse merge recipe.yaml --out again` merges the same models again:"]
    lines += ["", "```yaml", *run_file(recipe, publication.tasks if publication else ()).splitlines(), "```", ""]
    tower = "The vision tower has" if publication and publication.full else "It has"
    lines += [f"{tower} the same bits on the same machine and torch; elsewhere the last bits may differ.", ""]
    if publication and publication.results:
        lines += ["What was counted is in `records.jsonl`; `clipfuse evaluate`, as above, counts it again.", ""]
    lines += [*table(["file here", "sha256"], rows), ""] if rows else []
    lines += ["<details><summary>The whole recipe (clipfuse.json)</summary>", "", "```json"]
    lines += [json.dumps(recipe, indent=2, ensure_ascii=False), "```", "", "</details>", ""]
    return "\n".join(lines)


def place(member: Mapping[str, Any]) -> str:
    """Where a model is, for people."""
    if member.get("path"):
        return f"`{member['path']}`"
    return f"local: `{member['local']}`" if member.get("local") else "memory"


def named(name: str) -> str:
    return f"`{name}`{' (the base)' if name == PRETRAINED else ''}"


def chain(recipe: Mapping[str, Any]) -> str:
    """What tables call it: `dare + ties_merging`."""
    keys = ("edits", "method", "finishes", "after")
    return " + ".join(step["name"] for key in keys for step in as_list(recipe.get(key, ())))


def settings(step: Mapping[str, Any]) -> str:
    shown = {key: json.dumps(value, ensure_ascii=False) for key, value in step.items() if key != "name"}
    return ", ".join(f"{key} = {value}" for key, value in shown.items()) or "none"


def common_licence(licences: Mapping[str, str | None]) -> str | None:
    """The one licence that every model has, as the hub calls it; None where there is none or it is not known."""
    found = set(licences.values())
    licence = found.pop() if len(found) == 1 else None
    return licence if licence and re.fullmatch(r"[a-z0-9.-]+", licence) and licence != "other" else None


def base_first(pool: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(pool, key=lambda member: member["name"] != PRETRAINED)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], f"|{' --- |' * len(header)}", *lines[1:]]


def as_list(value: Any) -> list[Any]:
    return [value] if isinstance(value, (str, Mapping)) else list(value)
