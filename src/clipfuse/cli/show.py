"""`clipfuse show`."""

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clipfuse.cli.live import live
from clipfuse.cli.options import Given, Json, base_in, load_given, megabytes, options, print_json
from clipfuse.errors import ConfigError

What = Literal["method", "model", "modelpool", "task"]


@options("plugin")
def command(
    given: Given,
    what: Annotated[What, typer.Argument(help="What to show.")],
    name: Annotated[str, typer.Argument(help="A method, edit or finish; a folder or hub id; a pool; a task.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[base=...]", help="Base of a model.")] = None,
    bibtex: Annotated[bool, typer.Option("--bibtex", help="Of a method: print its BibTeX entry.")] = False,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Of a task: save so many images.")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="FILE.png", help="Where --samples go.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Of a model: read its weights and look for defects.")] = False,
    as_json: Json = False,
) -> None:
    """Show one method, model, modelpool or task."""
    if (deep or words) and what != "model":
        raise ConfigError("--deep, base=: are for models")
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
    base = base_in(words)
    data = model(name, base, deep) if what == "model" else {"modelpool": modelpool, "task": task}[what](name)
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
            "uses": list(rule.uses_by_default),
            "plugin": rule.origin.file if rule.origin else None,
        }
        print_json(facts | {"doc": inspect.getdoc(rule.function), "settings": settings, "bibtex": rule.paper.bibtex()})
    else:
        where = f" of the plug-in {rule.origin.file}" if rule.origin else ""
        print(f"{rule.kind} {name}{where}\n\n{inspect.getdoc(rule.function)}\n")
        if rule.uses:
            print(f"  sees, with these settings: {', '.join(rule.uses_by_default) or 'nothing'}")
        for row in settings:
            print(f"  {row['name']} = {row['default']}\n      {row['about']}")


def default_of(field: Any) -> str:
    """A setting's default, or that it has none and what it may be."""
    if not field.is_required():
        return repr(field.default)
    return f"required, as in {field.examples[0]!r}" if field.examples else "required"


def model(name: str, base: str | None, deep: bool) -> dict[str, Any]:
    """What a model is; its weights are read only if asked for."""
    from clipfuse.run.identity import describe

    facts = describe(name, deep, base, live)
    warnings = facts.pop("warnings", None)
    found = {**facts, "size": megabytes(facts.pop("bytes"))}
    return found if warnings is None else {**found, "warnings": warnings or ["none"]}


def modelpool(name: str) -> dict[str, Any]:
    """A pool's members as configured, nothing located."""
    from clipfuse.config.overrides import choose
    from clipfuse.pool import HuggingFaceClipVisionPool

    config = HuggingFaceClipVisionPool.from_tree(choose("modelpool", name), name).config
    return config.model_dump(exclude_none=True, mode="json")


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
