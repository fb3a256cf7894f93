"""Records → tables and files."""

from clipfuse.report.fusionbench import program_report
from clipfuse.report.table import Table, results_table

__all__ = ["Table", "program_report", "results_table"]
