"""A recipe as the YAML that `clipfuse run` and `clipfuse merge` take: how to get a merge again."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

PRETRAINED = "_pretrained_"
COEFFICIENTS = "coefficients.json"
"""What a method whose `weights` name a file leaves beside the merged weights."""


def run_file(recipe: Mapping[str, Any], tasks: Sequence[str] = ()) -> str:
    """A recipe as the YAML of `clipfuse run` and `clipfuse merge`, revisions pinned."""
    pool = recipe["pool"]
    models = [{"name": member["name"], "path": pinned(member)} for member in pool]
    tree: dict[str, Any] = {"modelpool": {"type": "huggingface_clip_vision", "models": models}}
    looked = recipe.get("data", ())
    tasks = tasks or list(dict.fromkeys(str(row["task"]) for row in looked if row.get("task")))
    tree |= {"taskpool": {"tasks": tasks}} if tasks else {}
    tree |= {key: recipe[key] for key in ("method", "edits", "finishes", "after", "seed") if key in recipe}
    limits = [row["chosen"]["limit"]["images"] for row in looked if "limit" in row.get("chosen", {})]
    tree |= {"limit": limits[0]} if limits else {}
    tree |= {"dtype": recipe["dtype"]} if isinstance(recipe["dtype"], str) else {}
    remarks = [f"# {pinned(m)}: put {lacking(m)} there" for m in pool if not m.get("path")]
    if COEFFICIENTS in recipe.get("files", ()) and recipe["method"].get("weights"):
        tree["method"] = {**recipe["method"], "weights": COEFFICIENTS}
        remarks.append(f"# {COEFFICIENTS} is beside this card")
    remarks += [f"# needs --plugin {plugin['file']}" for plugin in recipe.get("plugins", ())]
    return "".join(f"{remark}\n" for remark in remarks) + as_yaml(tree)


def pinned(member: Mapping[str, Any]) -> str:
    """The path of a model at the revision that was merged."""
    path, revision = member.get("path"), member.get("revision")
    if not path:
        return f"./{member['name']}"
    return f"{hub_id(path)}@{revision}" if revision and is_on_hub(path) else path


def lacking(member: Mapping[str, Any]) -> str:
    """What a model without a path was."""
    local = member.get("local")
    return f"what was {local!r} on the author's machine, with the same sha256," if local else "what was in memory"


def as_yaml(tree: Mapping[str, Any]) -> str:
    """Plain YAML, keys in the order of `tree`."""
    import yaml

    plain = json.loads(json.dumps(tree))  # no tuples, and no value twice, which YAML would write as an anchor
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=10_000)


def hub_id(path: str) -> str:
    return path.partition("@")[0]


def is_on_hub(path: str | None) -> bool:
    return bool(path) and not is_local(path)


def is_local(path: str) -> bool:
    return path.startswith(("/", ".", "~", "pkg://"))
