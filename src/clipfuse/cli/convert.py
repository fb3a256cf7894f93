"""`clipfuse convert`."""

from typing import Annotated, Literal

import typer

from clipfuse.cli.live import live
from clipfuse.cli.options import Given, Json, base_in, options, print_json

To = Annotated[Literal["hf", "clip", "openclip", "lora"], typer.Option("--to", help="Format that is written.")]
Rank = Annotated[int, typer.Option("--rank", min=1, help="Of a LoRA.")]
Words = Annotated[
    list[str] | None, typer.Argument(metavar="[base=...]", help="Its base; the known one of its geometry by default.")
]


@options("overwrite", "dtype", "verbose")
def command(
    given: Given,
    source: Annotated[str, typer.Argument(metavar="IN", help="A folder, weights file or hub id.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder.")],
    to: To,
    words: Words = None,
    rank: Rank = 16,
    as_json: Json = False,
) -> None:
    """Write a model in another format: transformers' tower or full CLIP, OpenCLIP's, or a LoRA of its base."""
    from clipfuse.fusion.merge import as_dtype
    from clipfuse.run.convert import convert

    base = base_in(words)
    dtype, overwrite = as_dtype(given.get("dtype")), given.get("overwrite", False)
    facts = convert(source, out, to, base=base, rank=rank, dtype=dtype, overwrite=overwrite, stage=live)
    if as_json:
        print_json(facts)
        return
    print(f"{source} → {out} ({to})")
    if to == "lora":
        print(
            f"rank {rank}: lost {100 * facts['error']:.1f} % of the task vector (norm), "
            f"{100 * facts['error_of_matrices']:.1f} % of its matrices"
        )
        print(f"most in {facts['worst']}: {100 * facts['error_of_worst']:.1f} %")
