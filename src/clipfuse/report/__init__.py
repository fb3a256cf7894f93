"""Records → tables and files."""

from clipfuse.report.fusionbench import program_report
from clipfuse.report.results import results_table, results_tables
from clipfuse.report.table import Table

__all__ = ["Table", "program_report", "results_table", "results_tables"]
