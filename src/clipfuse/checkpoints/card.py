"""The README of a written model: a Hugging Face model card made from the recipe."""

import json
from collections.abc import Mapping
from typing import Any

LOAD = """```python
from transformers import CLIPVisionModel
model = CLIPVisionModel.from_pretrained("this/folder")

import clipfuse
merged = clipfuse.load("this/folder")
```"""


def model_card(recipe: Mapping[str, Any]) -> str:
    """Markdown with front matter: parents, what was done, what data it saw, how to load it, the whole recipe."""
    pool = recipe["pool"]
    method = recipe["method"]["name"]
    parents = [member["path"] for member in pool if member.get("path") and not is_local(member["path"])]
    front = [
        "---",
        "library_name: transformers",
        "pipeline_tag: zero-shot-image-classification",
        "tags:",
        "- merge",
        "- clipfuse",
    ]
    if parents:
        front += ["base_model:", *[f"- {json.dumps(parent)}" for parent in parents], "base_model_relation: merge"]
    experts = [member["name"] for member in pool if not member["name"].startswith("_")]
    edits = "".join(f"{edit['name']} + " for edit in recipe.get("edits", []))
    finishes = "".join(f" + {finish['name']}" for finish in recipe.get("finishes", []))
    rows = [f"| {m['name']} | {m.get('path') or 'in memory'} | {m.get('revision') or ''} |" for m in pool]
    return "\n".join(
        [
            *front,
            "---",
            "",
            f"# CLIP vision encoder merged by {edits}{method}{finishes}",
            "",
            f"{len(experts)} experts ({', '.join(experts)}) fused into one by clipfuse {recipe['clipfuse']}.",
            "The text encoder, the projections and logit_scale are the base's, unchanged, and not in this folder.",
            f"Data seen by the method: {', '.join(recipe['uses']) or 'none'}.",
            "",
            "| model | path | revision |",
            "| --- | --- | --- |",
            *rows,
            "",
            "## Load it",
            "",
            LOAD,
            "",
            "## Recipe",
            "",
            "```json",
            json.dumps(recipe, indent=2, ensure_ascii=False),
            "```",
            "",
        ]
    )


def is_local(path: str) -> bool:
    return path.startswith(("/", ".", "~", "pkg://"))
