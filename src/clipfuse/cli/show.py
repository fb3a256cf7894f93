"""`clipfuse show`."""

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clipfuse.cli.options import Given, Json, load_given, megabytes, options, print_json
from clipfuse.errors import ConfigError

What = Literal["method", "model", "modelpool", "task"]


@options("plugin")
def command(
    given: Given,
    what: Annotated[What, typer.Argument(help="What to show.")],
    name: Annotated[str, typer.Argument(help="A method, edit or finish; a folder or hub id; a pool; a task.")],
    bibtex: Annotated[bool, typer.Option("--bibtex", help="Of a method: print its BibTeX entry.")] = False,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Of a task: save so many images.")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="FILE.png", help="Where --samples go.")] = None,
    as_json: Json = False,
) -> None:
    """Show one method, model, modelpool or task."""
    if bibtex and what != "method":
        raise ConfigError("--bibtex: is for methods")
    if samples and what != "task":
        raise ConfigError("--samples: is for tasks")
    load_given(given)
    if what == "method":
        show_method(name, bibtex, as_json)
        return
    if samples:
        save_samples(name, samples, out)
        return
    data = {"model": model, "modelpool": modelpool, "task": task}[what](name)
    if as_json:
        print_json(data)
        return
    for key, value in data.items():
        if isinstance(value, list):
            print(f"{key}:")
            for member in value:
                print(
                    "  "
                    + (", ".join(f"{v}" for v in member.values() if v) if isinstance(member, dict) else str(member))
                )
        else:
            print(f"{key}: {value}")


def show_method(name: str, bibtex: bool, as_json: bool) -> None:
    """The rule's documentation and settings, from the registry."""
    import clipfuse.fusion  # noqa: F401  registers the rules
    from clipfuse.fusion.registry import find_any

    rule = find_any(name)
    settings = [
        {"name": key, "default": default_of(field), "about": field.description}
        for key, field in rule.config.model_fields.items()
    ]
    if bibtex:
        print(rule.paper.bibtex())
    elif as_json:
        facts = {
            "name": name,
            "kind": rule.kind,
            "formula": rule.formula,
            "uses": list(rule.uses) if not callable(rule.uses) else None,
            "plugin": rule.origin.file if rule.origin else None,
        }
        print_json(facts | {"doc": inspect.getdoc(rule.function), "settings": settings, "bibtex": rule.paper.bibtex()})
    else:
        where = f" of the plug-in {rule.origin.file}" if rule.origin else ""
        print(f"{rule.kind} {name}{where}\n\n{inspect.getdoc(rule.function)}\n")
        for row in settings:
            print(f"  {row['name']} = {row['default']}\n      {row['about']}")


def default_of(field: Any) -> str:
    """A setting's default, or that it has none and what it may be."""
    if not field.is_required():
        return repr(field.default)
    return f"required, as in {field.examples[0]!r}" if field.examples else "required"


def model(name: str) -> dict[str, Any]:
    """What a model is, without reading its weights."""
    from clipfuse.checkpoints.checkpoint import common_dtype, open_checkpoint
    from clipfuse.checkpoints.geometry import read_geometry
    from clipfuse.checkpoints.hashes import known_hash
    from clipfuse.checkpoints.locate import locate
    from clipfuse.fusion.merged import read_recipe

    at = locate(name)
    checkpoint = open_checkpoint(at.folder, name)
    recipe = read_recipe(at.folder) if at.folder.is_dir() else None
    return {
        "path": str(at.folder),
        "revision": at.revision,
        "geometry": str(read_geometry(at.folder)),
        "parameters": sum(checkpoint.spec(n).numel for n in checkpoint),
        "dtype": str(common_dtype(checkpoint)).removeprefix("torch."),
        "size": megabytes(checkpoint.nbytes),
        "files": [{"name": file.name, "sha256": known_hash(file)} for file in checkpoint.files],
        "merged by": recipe["method"]["name"] if recipe else None,
    }


def modelpool(name: str) -> dict[str, Any]:
    """A pool's members as configured, nothing located."""
    from clipfuse.config.overrides import choose
    from clipfuse.pool import HuggingFaceClipVisionPool

    config = HuggingFaceClipVisionPool.from_tree(choose("modelpool", name), name).config
    return {"type": config.type, "models": [member.model_dump() for member in config.models]}


def task(name: str) -> dict[str, Any]:
    """A task's classes, prompts and source."""
    from clipfuse.run.tasks import get_task

    found = get_task(name)
    return {
        key: list(v) if isinstance(v, (tuple, list)) else v
        for key, v in found.model_dump().items()
        if v not in (None, ())
    }


def save_samples(name: str, count: int, out: str | None) -> None:
    """A contact sheet of a task's test images."""
    from clipfuse.run.pictures import picture_of_samples, save_picture
    from clipfuse.run.tasks import get_task

    found = get_task(name)
    path = Path(out or f"{found.name}_samples.png")
    if path.suffix.lower() not in (".png", ".jpg", ".webp"):
        raise ConfigError(f"--out: takes a file name that ends with .png, .jpg or .webp (found {str(path)!r})")
    save_picture(picture_of_samples(found, "test", count), path)
    print(path)
