"""One self-contained HTML page from a calibration, an evaluation, a red team or an audit trail."""

from lrpguard.report.alarms import Traffic
from lrpguard.report.report import report_page
from lrpguard.report.runs import read_run

__all__ = ["Traffic", "read_run", "report_page"]
