"""The report of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping

from lrpguard.conformal import card_images_text
from lrpguard.evaluation.cards import Card
from lrpguard.evaluation.outcomes import GUARD
from lrpguard.report import detection, restoration
from lrpguard.report.alarms import Rate, Traffic, alarm_table, promised
from lrpguard.report.cases import Case, chosen_cases, gallery
from lrpguard.report.markup import Html, code, command_lines, facts, join, paragraph, tag
from lrpguard.report.page import Section, Tile, document, limits, tiles
from lrpguard.report.pictures import Panels
from lrpguard.report.runs import EvaluationRun
from lrpguard.report.shares import percent, share, within


def evaluation_report(
    run: EvaluationRun, *, traffic: Traffic, pictures: Mapping[Case, Panels], command: str
) -> Html:
    """Return the page.

    Args:
        run: The evaluation.
        traffic: What alarms a day are counted for.
        pictures: Pictures of cases, where there are some.
        command: How this page is made again.
    """
    card, judged = run.card, run.judged
    sections = [
        limits(_limits(card)),
        Section("summary", "Summary", _summary(card)),
        Section("attacks", "Detection by attack and size of the change", _by_attack(card)),
    ]
    if judged is None:
        text = (
            "The card stands alone, without rows.jsonl beside it: no distributions, ROC curves, "
            "reliability and cases. Report on the folder that 'lrpguard evaluate --out' wrote to "
            "have them."
        )
        sections.append(Section("rows", "What is missing here", paragraph(text)))
    else:
        p_values = judged.clean.p_values[GUARD]
        reliability = detection.reliability_chart(
            p_values, int(card["guard"]["calibration_n"]), what="clean test images"
        )
        sections += [
            Section(
                "scores", "Scores, clean against attacked", detection.distributions(judged, card)
            ),
            Section("roc", "ROC curves and operating point", detection.roc_curves(judged, card)),
            Section("reliability", "Reliability of the p-values", reliability),
        ]
    clean = None if judged is None else judged.clean
    flows = join((restoration.attacked_flow(card), restoration.clean_flow(card, clean)))
    sections.append(Section("restoration", "Restoration: what becomes of flagged images", flows))
    sections.append(Section("alarms", "Alarms a day", _alarms(card, traffic)))
    beside = detection.beside(card)
    if beside is not None:
        sections.append(Section("beside", "Beside other detectors", beside))
    if judged is not None:
        found = chosen_cases(judged, alpha=float(card["guard"]["alpha"]))
        sections.append(Section("cases", "Worst and best cases", gallery(found, card, pictures)))
    sections.append(Section("reproduce", "Reproduce it", _reproduce(card, command)))
    title = f"Guarding {card['model']} on {card['data']}"
    subtitle = f"An evaluation of {card['created'][:10]}, with static attacks."
    return document(title, subtitle, sections)


def _limits(card: Card) -> list[object]:
    results = card["results"]
    worst = share(results["per_sample"]["detectors"][GUARD]["5"]["sr"])
    least = results["suite"]["detectors"][GUARD]["5"]["worst"]
    points: list[object] = [
        join(
            (
                tag("strong", "All attacks here are static: "),
                "they know the model, and not the guard. Nothing here speaks of an attacker who "
                "knows it; published detectors of this kind fell to 0 % then.",
            )
        ),
    ]
    if worst.n:
        points.append(
            f"Taking for each image the attack that serves best, {worst} fool model and guard at "
            "the 5 % threshold. Averages over attacks hide this."
        )
    if least is not None:
        title = next(str(e["title"]) for e in card["suite"] if e["name"] == least["attack"])
        points.append(f"The attack noticed least is {title}: {share(least)} of the successful.")
    for name, found in results["controls"].items():
        flagged = share(found["flagged"][GUARD]["5"])
        if flagged.n and flagged.low > 0.05:
            title = next(str(e["title"]) for e in card["suite"] if e["name"] == name)
            points.append(f"Flagged, though nobody attacked: {title}, {flagged}.")
    test = card["splits"]["test"]["n"]
    points += [
        f"{test} test images of one data set, seed {card['seed']}. Intervals hold for images like "
        "these, and for this model alone.",
        f"The false-positive rate is bounded for images like the {card['splits']['pool']['n']} "
        "clean ones that calibrated the guard, and for no others: a new camera needs a new "
        "calibration.",
        "A flag is evidence, not proof. Where attacks are rare, most alarms are false: see the "
        "alarms a day below.",
    ]
    return points


def _summary(card: Card) -> Html:
    results = card["results"]
    fpr = share(results["clean"]["fpr"][GUARD]["5"])
    mean = results["suite"]["detectors"][GUARD]["5"]["mean_tpr"]
    per_sample = results["per_sample"]
    worst = share(per_sample["detectors"][GUARD]["5"]["tpr"])
    restored = share(per_sample["restored_of_success"])
    harm = share(results["clean"]["harm_wrong"])
    band = results["clean"]["fpr"][GUARD]["5"]["band"]
    shown = [
        Tile(
            "Clean images flagged, at 5 %",
            percent(fpr),
            f"{within(fpr)}; expected {100 * band[0]:.1f}-{100 * band[1]:.1f} %",
        ),
        Tile("Successful attacks flagged, mean over attacks", *_mean(mean)),
        Tile("Flagged, worst attack for each image", percent(worst), within(worst)),
        Tile("Restored right, whatever the attack", percent(restored), within(restored)),
        Tile("Right labels made wrong, of clean images", percent(harm), within(harm)),
    ]
    guard, splits = card["guard"], card["splits"]
    used = card_images_text(guard)
    known = facts(
        [
            ("model", f"{card['model']}, fingerprint {str(card['fingerprint'])[:12]}"),
            ("data", card["data"]),
            (
                "clean images",
                f"{used}, {splits['test']['n']} are judged",
            ),
            ("detector", code(guard["detector"])),
            ("noise", f"{guard['n']} copies, sigma {float(guard['sigma']):g}"),
            ("attacks", f"{len(results['attacks'])}, and {len(results['controls'])} controls"),
            ("made", card["created"]),
        ]
    )
    note = paragraph(
        "Shares with 95 % Wilson intervals, means with those of a bootstrap.", soft=True
    )
    return join((tiles(shown), known, note))


def _mean(found: Mapping[str, float | None]) -> tuple[str, str]:
    value, low, high = (found[end] for end in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "-", "no attack succeeded"
    return f"{100 * value:.1f} %", f"{100 * low:.1f}-{100 * high:.1f} %"


def _by_attack(card: Card) -> Html:
    parts = [detection.by_attack(card)]
    lines = detection.by_eps(card)
    if lines is not None:
        parts += [tag("h3", "Against the size of the change"), lines]
    return join((*parts, detection.attack_table(card)))


def _alarms(card: Card, traffic: Traffic) -> Html:
    results = card["results"]
    levels = []
    for level in ("5", "1"):
        false = promised(int(level) / 100, int(card["guard"]["calibration_n"]))
        mean = results["suite"]["detectors"][GUARD][level]["mean_tpr"]
        if mean["value"] is None:
            return paragraph("No attack fooled the model: there is no rate to count with.")
        true = Rate(*(float(mean[end]) for end in ("value", "low", "high")))
        levels.append((f"{level} %", false, true))
    note = paragraph(
        "False alarms as the calibration bounds them for clean requests like its images; attacks "
        "as noticed above, in the mean over these attacks. Your traffic has another mix."
    )
    return join((note, alarm_table(levels, traffic)))


def _reproduce(card: Card, command: str) -> Html:
    seconds = card["seconds"]
    took = float(seconds["calibrate"]) + float(seconds["judge"])
    attacks = sum(float(part) for part in seconds["attacks"].values())
    splits = card["splits"]
    known = facts(
        [
            ("seed", card["seed"]),
            ("pool", code(splits["pool"]["digest"])),
            ("test images", code(splits["test"]["digest"])),
            ("model", code(card["fingerprint"])),
            ("precision", card["precision"]),
            (
                "time",
                f"{took / 60:.1f} min calibration and verdicts, {attacks / 60:.1f} min attacks, on "
                f"{card['threads']} thread(s)",
            ),
            ("versions", ", ".join(f"{name} {v}" for name, v in card["versions"].items())),
        ]
    )
    evaluate = str(card.get("command", "(called from Python)"))
    return join(
        (
            paragraph("The evaluation, with its own paths:"),
            command_lines(evaluate),
            paragraph("This page:"),
            command_lines(command),
            known,
        )
    )
