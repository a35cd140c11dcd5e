"""The report: one HTML file that says what a run did, what people gained by it, and what it cost."""

from heed.report.page import write_report
from heed.report.reading import Finding, read_results
from heed.report.run import RunData, Stage, load_run

__all__ = ["Finding", "RunData", "Stage", "load_run", "read_results", "write_report"]
