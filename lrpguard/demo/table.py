"""The demo's result rows as text and as records."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lrpguard.conformal import images_text
from lrpguard.consensus import Consensus
from lrpguard.demo.run import (
    ATTACK_EPS,
    ATTACK_STEPS,
    DEMO_ALPHA,
    DETECTORS,
    DemoResult,
    DemoRow,
)
from lrpguard.version import __version__

MEASURES = {
    "false_positives": "flagged by mistake",
    "harm": "  right label made wrong, of these",
    "withheld": "  right label made unknown, of these",
    "fooled": "fooled the model",
    "detected_of_fooled": "flagged, of those that fooled",
    "detected_of_attempts": "flagged, of all attempts",
    "restored_of_detected": "restored, of those fooled and flagged",
    "control_of_detected": "  control: random pixels",
    "restored_of_fooled": "restored, of all that fooled",
    "control_of_fooled": "  control: random pixels",
}
"""What each measure of a row is called in the table."""

NOTE = (
    "Static attack: it does not know of the guard. One that does gets past more often.",
    "8 x 8 digits and a small model: a tour of the method, no evidence for other models.",
)

_MEASURE_WIDTH = 41
_SHARE_WIDTH = 29


def format_result(result: DemoResult) -> str:
    """Return the whole result as text: header, table, note."""
    return "\n".join([*_header(result), "", *_table(result), "", *NOTE])


def to_record(result: DemoResult) -> dict[str, Any]:
    """Return the result as one record of plain values, without the picture."""
    return {
        "version": __version__,
        "settings": asdict(result.settings)
        | {"alpha": DEMO_ALPHA, "attack": "pgd", "steps": ATTACK_STEPS},
        "train_n": result.train_n,
        "fit_n": result.fit_n,
        "crossed": result.crossed,
        "calibration_n": dict(zip(DETECTORS, result.calibration_n, strict=True)),
        "fpr_bands_95": dict(zip(DETECTORS, result.fpr_bands, strict=True)),
        "test_n": result.test_n,
        "correct": result.correct,
        "rows": [asdict(row) | {"rate": row.share.rate} for row in result.rows],
        "note": " ".join(NOTE),
    }


def _header(result: DemoResult) -> list[str]:
    settings = result.settings
    combined, paper = result.calibration_n
    return [
        f"data       scikit-learn's 8 x 8 digits: {result.train_n} trained the model, "
        f"{paper} calibrate, {result.test_n} test",
        f"model      packaged CNN, right on {result.correct} of {result.test_n} test digits",
        f"guard      n = {settings.n} noisy copies, sigma {settings.sigma:g}, seed "
        f"{settings.seed}, alpha {DEMO_ALPHA:g}",
        f"detectors  combined: {images_text(result.fit_n, combined, crossed=result.crossed)}; "
        f"paper (relevance variance): {paper} calibrate",
        f"restored   combined: by consensus, harm {Consensus().harm:g}; paper: by whitening; "
        "control: whitens random pixels",
        f"attack     PGD, L-infinity, {ATTACK_STEPS} steps, on the {result.correct} digits read "
        "rightly; all images in 8 bits",
        "shares     with 95 % Wilson intervals; restored counts the right label alone",
    ]


def _table(result: DemoResult) -> list[str]:
    lines = [_line("", *DETECTORS)]
    bands = [f"(expected: {100 * low:.1f}-{100 * high:.1f} %)" for low, high in result.fpr_bands]
    lines += [_line(f"clean digits (n = {result.test_n})", *bands), *_section(result, 0.0)]
    for eps in ATTACK_EPS:
        lines += ["", f"PGD, eps {round(255 * eps)}/255 (n = {result.correct})"]
        lines += _section(result, eps)
    return lines


def _section(result: DemoResult, eps: float) -> list[str]:
    rows = [row for row in result.rows if row.eps == eps]
    lines = []
    for measure, name in MEASURES.items():
        shares = [_share(rows, measure, detector) for detector in (None, *DETECTORS)]
        if any(shares):
            alone, *each = shares
            lines.append(_line(f"  {name}", *([alone, ""] if alone else each)))
    return lines


def _share(rows: list[DemoRow], measure: str, detector: str | None) -> str:
    found = [row for row in rows if row.measure == measure and row.detector == detector]
    return str(found[0].share) if found else ""


def _line(name: str, *shares: str) -> str:
    cells = "".join(f"{share:<{_SHARE_WIDTH}}" for share in shares)
    return f"{name:<{_MEASURE_WIDTH}}{cells}".rstrip()
