"""Whole pages: what they say, and that nothing in them is markup that should not be."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from lrpguard.errors import LoadingError
from lrpguard.evaluation.metrics import proportion
from lrpguard.report import Traffic, read_run, report_page
from lrpguard.report.runs import AuditRun, CalibrationRun, EvaluationRun, RedTeamRun
from lrpguard.serving.audit import AuditTrail
from tests.report.conftest import NASTY, card_of
from tests.support import make_calibration

RED_TEAM: dict[str, Any] = {
    "kind": "red_team",
    "model": NASTY,
    "command": f"python scripts/red_team.py {NASTY}",
    "seed": 0,
    "sigma": 0.02,
    "clean": {"flagged_5%": [3, 60]},
    "warnings": [NASTY],
    "rows": [
        {"attack": NASTY, "knows": NASTY, "levels": 8, "sr_5%": [9, 10], "sr_1%": [10, 10]},
        {"attack": "PGD", "knows": "static", "eps": 4 / 255, "sr_5%": {"successes": 1, "n": 10}},
        {"attack": "no counts", "knows": "static", "sr_5%": "none"},
    ],
}


class Page(HTMLParser):
    """Elements of a page, and whether each was closed."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src"):
                self.addresses.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(text: str) -> Page:
    """Check that a page is whole, alone and harmless."""
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert len(set(page.ids)) == len(page.ids)
    anchors = [a[1:] for a in page.addresses if a.startswith("#")]
    assert set(anchors) <= set(page.ids)
    assert all(a.startswith(("#", "data:")) for a in page.addresses)
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert not re.search(r"\bnan\b", text)
    return page


def audit(folder: Path, lines: list[dict[str, Any]]) -> AuditRun:
    trail = AuditTrail(folder, fsync="never", rotate_bytes=10**6, key=b"")
    trail.append(lines)
    trail.close()
    found = read_run(folder)
    assert isinstance(found, AuditRun)
    return found


def verdict(i: int, **changes: Any) -> dict[str, Any]:
    flagged = i % 10 == 0
    return {
        "event": "verdict",
        "time": f"2026-01-01T00:00:{i % 60:02d}",
        "request": f"r{i}",
        "client": NASTY,
        "fingerprint": NASTY,
        "alpha": 0.05,
        "threshold": 9.0,
        "on_flag": "annotate",
        "version": "0",
        "ms": {NASTY: 1.5, "guard": 20.0},
        "image": f"h{i}",
        "label": 1,
        "restored_label": None if flagged else 1,
        "flagged": flagged,
        "p_value": 0.01 if flagged else (i % 10) / 10,
        "score": 12.0 if flagged else float(i % 10),
        "status": "unknown" if flagged else "clean",
        "reason": None,
    } | changes


def test_an_evaluation(run: EvaluationRun) -> None:
    text = report_page(run, command=f"lrpguard report {NASTY}")
    page = checked(text)
    for name in ("limits", "summary", "scores", "roc", "reliability", "alarms", "cases"):
        assert name in page.ids
    assert page.ids.index("limits") < page.ids.index("summary")
    results = run.card["results"]
    for found in (
        results["clean"]["fpr"]["guard"]["5"],
        results["per_sample"]["detectors"]["guard"]["5"]["sr"],
        results["attacks"]["cw_0"]["restored_of_success"],
    ):
        assert str(proportion(found["successes"], found["n"])) in text
    assert "&lt;script&gt;" in text
    assert report_page(run, command=f"lrpguard report {NASTY}") == text


def test_an_evaluation_without_its_rows(run: EvaluationRun) -> None:
    text = report_page(EvaluationRun(run.card, None), command="lrpguard report card.json")
    page = checked(text)
    assert "roc" not in page.ids
    assert "What is missing here" in text


def test_committed_cards() -> None:
    folder = Path(__file__).resolve().parents[2] / "docs" / "results"
    paths = [*folder.glob("evaluation_*.json"), *folder.glob("red_team_*.json")]
    assert paths
    for path in paths:
        checked(report_page(read_run(path), command="lrpguard report"))


@pytest.mark.parametrize("missing", ["guard", "results", "splits", "suite", "seconds", "versions"])
def test_a_card_that_is_not_whole(run: EvaluationRun, missing: str) -> None:
    broken = card_of(run, **{missing: "something else"})
    with pytest.raises(LoadingError, match="not whole"):
        report_page(broken, command="")


def test_a_calibration() -> None:
    made = make_calibration(torch.linspace(0, 3, 60), alpha=0.05)
    text = report_page(
        CalibrationRun(f"{NASTY}.safetensors", made),
        command="lrpguard report guard.safetensors",
        traffic=Traffic(requests=5000),
    )
    checked(text)
    low, high = made.fpr_band()
    assert f"{100 * low:.1f}-{100 * high:.1f} %" in text
    assert "too few images" in text  # at alpha 0.1 %
    assert "5,000 requests a day" in text


def test_a_red_team() -> None:
    text = report_page(RedTeamRun(RED_TEAM), command="lrpguard report red.json")
    checked(text)
    assert f"{proportion(9, 10)} of the attempts fool model and guard" in text
    assert "no counts" in text
    assert "PGD, 4/255" in text


def test_a_red_team_with_little_in_its_card() -> None:
    checked(report_page(RedTeamRun({"kind": "red_team", "rows": []}), command=""))
    with pytest.raises(LoadingError, match="not whole"):
        report_page(RedTeamRun({"rows": [{"sr_5%": [3, 1]}]}), command="")


def test_an_audit_trail(tmp_path: Path) -> None:
    lines = [verdict(i) for i in range(60)] + [verdict(0, request="again")]
    lines.append(verdict(70, p_value=None, score=None, status="unguarded", reason=NASTY))
    lines.append({"event": "monitor", "time": "2026-01-01T00:02:00"})
    text = report_page(audit(tmp_path / "a", lines), command="lrpguard report audit")
    checked(text)
    assert "60 distinct images judged" in text
    assert "10.0 %" in text
    assert "6 of 60; clean traffic: 5 %" in text
    assert "1 of 62 answers are the bare model" in text


def test_an_audit_trail_of_early_stopping_has_no_single_threshold(tmp_path: Path) -> None:
    lines = [verdict(i, threshold=None, stopping=True) for i in range(30)]
    assert "30 distinct images judged" in report_page(audit(tmp_path / "a", lines), command="")


def test_an_audit_trail_without_verdicts(tmp_path: Path) -> None:
    checked(report_page(audit(tmp_path / "a", [{"event": "monitor"}]), command=""))
    unguarded = [verdict(1, p_value=None, score=None, status="unguarded", reason="overload")]
    checked(report_page(audit(tmp_path / "b", unguarded), command=""))


def test_an_audit_trail_of_others(tmp_path: Path) -> None:
    with pytest.raises(LoadingError, match="not whole"):
        report_page(audit(tmp_path / "a", [{"event": "verdict"}]), command="")


def test_a_red_team_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "red.json"
    path.write_text(json.dumps(RED_TEAM))
    checked(report_page(read_run(path), command=""))
