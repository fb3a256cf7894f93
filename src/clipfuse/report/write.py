"""Writing records and reports into a folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from clipfuse.checkpoints.writer import new_folder, write_text
from clipfuse.evaluate.record import Record, write_records
from clipfuse.report.fusionbench import program_report
from clipfuse.report.table import Table, results_table


def write_report(folder: Path, table: Table, records: Sequence[Record], subjects: Sequence[str]) -> None:
    """`records.jsonl`, `report.md`, and `report.json` of the models `subjects` (one: an object, more: a list)."""
    write_records(folder / "records.jsonl", records)
    write_text(folder / "report.md", table.markdown())
    reports = [program_report([r for r in records if r.model == subject]) for subject in subjects]
    write_text(folder / "report.json", json.dumps(reports[0] if len(reports) == 1 else reports, indent=2) + "\n")


def write_results(folder: Path, records: Sequence[Record], overwrite: bool = False) -> None:
    """A new folder with the reports of all models that were evaluated. Raises OutputError."""
    with new_folder(folder, overwrite) as temporary:
        write_report(
            temporary, results_table(records), records, list(dict.fromkeys(record.model for record in records))
        )
