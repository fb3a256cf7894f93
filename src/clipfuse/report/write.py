"""Writing records and reports into a folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from clipfuse.checkpoints.writer import write_text
from clipfuse.evaluate.record import Record, write_records
from clipfuse.report.fusionbench import program_report
from clipfuse.report.results import by_row
from clipfuse.report.table import Table


def write_report(folder: Path, tables: Sequence[Table], records: Sequence[Record], subjects: Sequence[str]) -> None:
    """`records.jsonl`, `report.md`, the accuracies as `report.csv` and `report.tex`, and `report.json`.

    Args:
        folder: Where they go.
        tables: The accuracies, then others.
        records: All of them.
        subjects: Models of `report.json`. One row gives an object, more a list: a model has one for the clean images
            (`ties_merging`) and one for each corruption (`ties_merging · spatter 3`).
    """
    write_records(folder / "records.jsonl", records)
    write_text(folder / "report.md", "\n".join(table.markdown() for table in tables))
    write_text(folder / "report.csv", tables[0].csv())
    write_text(folder / "report.tex", tables[0].latex())
    rows = by_row([record for subject in subjects for record in records if record.model == subject])
    reports = [program_report(name, list(found.values())) for name, found in rows.items()]
    write_text(folder / "report.json", json.dumps(reports[0] if len(reports) == 1 else reports, indent=2) + "\n")
