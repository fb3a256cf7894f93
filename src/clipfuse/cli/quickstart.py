"""`clipfuse quickstart`."""

from clipfuse.cli.live import live
from clipfuse.cli.options import Given, Json, options, print_json, say


@options("device", "batch_size", "limit", "seed", "verbose")
def command(given: Given, as_json: Json = False) -> None:
    """Merge the offline suite's experts by several methods and score base, experts and merged models. No network."""
    say("The tiny suite: a small CLIP and its experts, shipped with clipfuse. Merging and scoring …")
    from clipfuse.report import results_table
    from clipfuse.run.quickstart import quickstart

    records = quickstart(given, live)
    if as_json:
        print_json([record.model_dump(mode="json") for record in records])
        return
    results_table(records).print()
    pools = "modelpool=tiny_TA8 taskpool=tiny_TA8"
    say(f"Next: clipfuse run method=ties_merging {pools} · clipfuse ls methods · clipfuse --help")
