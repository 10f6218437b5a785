"""The report of a calibration: what it promises, and to whom."""

from __future__ import annotations

from lrpguard.conformal import flagged_rank, images_text
from lrpguard.report.alarms import Traffic, false_alarms, promised
from lrpguard.report.detection import figure, histogram
from lrpguard.report.markup import Html, code, command_lines, facts, join, paragraph, table
from lrpguard.report.page import Section, Tile, document, limits, tiles
from lrpguard.report.runs import CalibrationRun

ALPHAS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)


def calibration_report(run: CalibrationRun, *, traffic: Traffic, command: str) -> Html:
    """Return the page.

    Args:
        run: The calibration.
        traffic: What alarms a day are counted for.
        command: How this page is made again.
    """
    calibration = run.calibration
    low, high = calibration.fpr_band()
    shown = [
        Tile("Clean images flagged", f"{100 * calibration.alpha:g} %", "at most, in expectation"),
        Tile("Realised rate", f"{100 * low:.1f}-{100 * high:.1f} %", "95 % band, by chance alone"),
        Tile("Threshold", f"{calibration.threshold:.4g}", "of the anomaly score"),
        Tile(
            "False alarms a day",
            false_alarms(promised(calibration.alpha, calibration.n), traffic).split(" ")[0],
            f"of {traffic.requests:,.0f} clean requests",
        ),
    ]
    channels, height, width = calibration.image_shape
    noise = calibration.smoothing
    used = images_text(calibration.fit_n, calibration.n, crossed=calibration.crossed)
    known = facts(
        [
            ("file", run.name),
            ("model", code(calibration.fingerprint)),
            ("precision", calibration.precision),
            ("images", f"{used}; digest of all below"),
            ("image size", f"{channels} x {height} x {width}"),
            ("noise", f"{noise.n} copies, sigma {noise.sigma:g}"),
            ("composite", noise.composite.name),
            ("detector", calibration.detector.name),
            ("scores", ", ".join(calibration.detector.score_names)),
            ("made", f"{calibration.created}, lrpguard {calibration.version}"),
        ]
    )
    scores = calibration.anomalies.numpy()
    picture = figure(
        histogram(scores, None, calibration.threshold, label="Scores of the calibration images"),
        f"Anomaly scores of the {calibration.n} clean calibration images. What lies to the right "
        "of the dashed line is flagged. The axis is linear near 0 and logarithmic beyond.",
    )
    reproduce = join(
        (
            command_lines(command),
            facts(
                [("data digest", code(calibration.data_digest)), ("seed of the noise", noise.seed)]
            ),
        )
    )
    sections = [
        limits(_limits(run)),
        Section("summary", "Summary", join((tiles(shown), known))),
        Section("scores", "Scores of clean images", picture),
        Section("levels", "What other alphas would mean", _levels(run, traffic)),
        Section("reproduce", "Reproduce it", reproduce),
    ]
    return document(f"Calibration {run.name}", "What is usual for clean images.", sections)


def _limits(run: CalibrationRun) -> list[object]:
    calibration = run.calibration
    low, high = calibration.fpr_band()
    points: list[object] = [
        "A calibration says how often clean images are flagged. It says nothing of attacks: "
        "'lrpguard evaluate' measures how many attacks are noticed.",
        "It holds for images like those that calibrated it, and for this model's weights alone. A "
        "new camera, another crop, a retrained model: calibrate again.",
        "If the images were not clean, attacks like those among them will pass.",
        f"{calibration.n} images calibrate: the rate that is realised lies between "
        f"{100 * low:.1f} and {100 * high:.1f} % in 95 of 100 such calibrations.",
    ]
    smallest = 1 / (calibration.n + 1)
    points.append(
        f"The smallest p-value there can be is {smallest:.2g}; no request is flagged at a smaller "
        "alpha."
    )
    return points


def _levels(run: CalibrationRun, traffic: Traffic) -> Html:
    calibration = run.calibration
    rows = []
    for alpha in sorted({*ALPHAS, calibration.alpha}):
        k = flagged_rank(calibration.n, alpha)
        rate = promised(alpha, calibration.n)
        mine = " (in the file)" if alpha == calibration.alpha else ""
        if k < 1:
            rows.append([f"{100 * alpha:g} %{mine}", "too few images", "-", "-"])
            continue
        threshold = float(calibration.anomalies[calibration.n - k])
        rows.append(
            [
                f"{100 * alpha:g} %{mine}",
                f"{threshold:.4g}",
                f"{100 * rate.low:.2f}-{100 * rate.high:.2f} %",
                false_alarms(rate, traffic),
            ]
        )
    head = ("alpha", "threshold", "realised, 95 % band", "false alarms a day")
    caption = f"{traffic.requests:,.0f} requests a day"
    return join(
        (
            table(head, rows, caption=caption),
            paragraph(
                "Where one request in 10,000 is an attack, most alarms are false at any of these.",
                soft=True,
            ),
        )
    )
