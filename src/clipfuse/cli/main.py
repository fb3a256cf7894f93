"""`clipfuse`: the verbs, and errors told in one line."""

import errno
import os
import shlex
import sys

import typer
from typer.exceptions import Abort, TyperException

from clipfuse.cli import (
    add,
    audit,
    cache,
    check,
    compare,
    convert,
    evaluate,
    fetch,
    finetune,
    ls,
    merge,
    publish,
    quickstart,
    run,
    show,
)
from clipfuse.cli.allocator import give_back_large_blocks
from clipfuse.errors import ClipfuseError
from clipfuse.version import __version__

INTERRUPTED = 130

app = typer.Typer(
    help="Fuse CLIP-ViT models for open-vocabulary image classification, and measure what came out.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    quickstart,
    run,
    merge,
    add,
    evaluate,
    compare,
    audit,
    finetune,
    convert,
    publish,
    fetch,
    ls,
    show,
    check,
    cache,
):
    app.command(name=verb.__name__.rsplit(".", 1)[-1])(verb.command)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clipfuse {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Print the version."),
) -> None:
    """Fuse CLIP-ViT models for open-vocabulary image classification, and measure what came out."""


def main() -> None:
    """Run the command line; leave with 0, with 2 for what a user caused, with 130 for ^C."""
    give_back_large_blocks()
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:  # typer turns ^C into this status
            raise KeyboardInterrupt
        sys.exit(status if isinstance(status, int) else 0)
    except ClipfuseError as error:
        sys.exit(fail(str(error), 2))
    except TyperException as error:  # an option or argument that typer refuses
        message = getattr(error, "format_message", error.__str__)()
        sys.exit(fail(message, 2) if message else 0)  # no message: the help was asked for by saying nothing
    except (KeyboardInterrupt, Abort):
        sys.exit(fail("interrupted; nothing was left half-written", INTERRUPTED))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(fail(f"{error.filename or 'output'}: {error.strerror}", 2))
    except Exception as error:
        place = line_of_plugin(error)
        if place is None:
            raise
        sys.exit(fail(f"{place}: {type(error).__name__}: {error}", 2))


def line_of_plugin(error: Exception) -> str | None:
    """`file:line` if an error came from a plug-in's code; only where one may have been loaded."""
    loading = sys.modules.get("clipfuse.fusion.loading")
    return loading.last_line(error) if loading else None


def fail(message: str, status: int) -> int:
    for key in ("modelpool=", "taskpool="):  # advice to fetch names what was asked for
        if word := next((word for word in sys.argv if word.startswith(key)), None):
            message = message.replace(f"{key}NAME_OR_FILE", shlex.quote(word))
    print("clipfuse: " + " ".join(message.split("\n")), file=sys.stderr)
    return status
