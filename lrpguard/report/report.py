"""From a run to its page."""

from __future__ import annotations

from collections.abc import Mapping

from lrpguard.errors import LoadingError
from lrpguard.report.alarms import Traffic
from lrpguard.report.audit import audit_report
from lrpguard.report.calibration import calibration_report
from lrpguard.report.cases import Case
from lrpguard.report.evaluation import evaluation_report
from lrpguard.report.markup import Html
from lrpguard.report.pictures import Panels
from lrpguard.report.red_team import red_team_report
from lrpguard.report.runs import CalibrationRun, EvaluationRun, RedTeamRun, Run


def report_page(
    run: Run,
    *,
    command: str,
    traffic: Traffic | None = None,
    pictures: Mapping[Case, Panels] | None = None,
) -> Html:
    """Return the page of a run: one HTML file that fetches nothing and runs no script.

    The same run gives the same page.

    Args:
        run: What is reported on.
        command: How the page is made again; it stands at the end.
        traffic: What alarms a day are counted for.
        pictures: Pictures of cases of an evaluation.

    Raises:
        LoadingError: What the run holds is not whole.
    """
    traffic = traffic or Traffic()
    try:
        if isinstance(run, CalibrationRun):
            return calibration_report(run, traffic=traffic, command=command)
        if isinstance(run, EvaluationRun):
            return evaluation_report(run, traffic=traffic, pictures=pictures or {}, command=command)
        if isinstance(run, RedTeamRun):
            return red_team_report(run, command=command)
        return audit_report(run, traffic=traffic, command=command)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise LoadingError(
            f"what is to be reported on is not whole ({type(error).__name__}: {error}). Make it "
            "anew with this version of lrpguard."
        ) from error
