"""What became of flagged images: restored rightly, wrongly, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrpguard.evaluation.cards import Card
from lrpguard.evaluation.outcomes import GUARD, Clean
from lrpguard.evaluation.summary import UNKNOWN
from lrpguard.report.detection import figure
from lrpguard.report.flow import Node, flow
from lrpguard.report.markup import Html, folded, join, paragraph, table, tag
from lrpguard.report.shares import share
from lrpguard.report.svg import ATTACKED, CLEAN, FOURTH, GREY, THIRD

FLAGGED, PASSED = "flagged", "not flagged"
RIGHT, WRONG, NONE, STANDS = "restored: right", "restored: wrong", "unknown", "wrong answer stands"
KEPT, MISTAKEN, LOST, ERROR = "right label kept", "wrong label", "right label lost", "wrong before"

Links = dict[tuple[str, str], int]


def attacked_links(found: Mapping[str, Any]) -> Links:
    """Return where the successful attempts of an attack go, from its counts in the card."""
    successes = int(found["success"]["successes"])
    flagged = int(found["detectors"][GUARD]["5"]["tpr"]["successes"])
    right = int(found["restored_of_success"]["successes"])
    unknown = int(found["unknown_of_success"]["successes"])
    return {
        ("successful", FLAGGED): flagged,
        ("successful", PASSED): successes - flagged,
        (FLAGGED, RIGHT): right,
        (FLAGGED, WRONG): flagged - right - unknown,
        (FLAGGED, NONE): unknown,
        (PASSED, STANDS): successes - flagged,
    }


def clean_links(clean: Clean, alpha: float) -> Links:
    """Return where clean images go."""
    flagged = clean.p_values[GUARD] <= alpha
    right, unknown = clean.correct, clean.final == UNKNOWN
    kept = right & (clean.final == clean.labels)
    links: Links = {
        ("clean images", FLAGGED): int(flagged.sum()),
        ("clean images", PASSED): int((~flagged).sum()),
    }
    for name, chosen in ((FLAGGED, flagged), (PASSED, ~flagged)):
        links |= {
            (name, KEPT): int((chosen & kept).sum()),
            (name, ERROR): int((chosen & ~right).sum()),
            (name, LOST): int((chosen & right & unknown).sum()),
            (name, MISTAKEN): int((chosen & right & ~kept & ~unknown).sum()),
        }
    return links


def attacked_flow(card: Card) -> Html:
    """Return what becomes of all successful attempts, with a row for each attack."""
    every = {name: attacked_links(found) for name, found in card["results"]["attacks"].items()}
    total: Links = {}
    for links in every.values():
        for pair, count in links.items():
            total[pair] = total.get(pair, 0) + count
    attempts = total.get(("successful", FLAGGED), 0) + total.get(("successful", PASSED), 0)
    if not attempts:
        return paragraph("No attack fooled the model: nothing was to be restored.")
    nodes = [
        Node("successful", 0, GREY),
        Node(FLAGGED, 1, CLEAN),
        Node(PASSED, 1, ATTACKED),
        Node(RIGHT, 2, THIRD),
        Node(NONE, 2, GREY),
        Node(WRONG, 2, FOURTH),
        Node(STANDS, 2, ATTACKED),
    ]
    order = [
        ("successful", FLAGGED),
        ("successful", PASSED),
        (FLAGGED, RIGHT),
        (FLAGGED, NONE),
        (FLAGGED, WRONG),
        (PASSED, STANDS),
    ]
    picture = flow(
        nodes, {pair: total[pair] for pair in order}, label="What becomes of successful attacks"
    )
    caption = (
        f"All {attempts} successful attempts of all attacks, threshold at 5 %. An image counts "
        "once for each attack that fools the model on it, so the attempts are not independent."
    )
    rows = []
    for name, links in every.items():
        found = card["results"]["attacks"][name]
        rows.append(
            [
                next(str(e["title"]) for e in card["suite"] if e["name"] == name),
                found["success"]["successes"],
                links[("successful", FLAGGED)],
                share(found["restored_of_success"]),
                share(found["unknown_of_success"]),
                links[(FLAGGED, WRONG)],
            ]
        )
    head = ("attack", "successful", "flagged", "restored right", "unknown", "restored wrong")
    details = folded("Attack by attack", table(head, rows, caption="Of the successful attempts"))
    return join((figure(picture, caption, wide=True), details))


def clean_flow(card: Card, clean: Clean | None) -> Html:
    """Return what becomes of clean images: the harm."""
    results = card["results"]["clean"]
    harm = table(
        ("clean images", "share"),
        [
            ("flagged by mistake, at 5 %", share(results["fpr"][GUARD]["5"])),
            ("right label replaced by a wrong one", share(results["harm_wrong"])),
            ("right label replaced by unknown", share(results["harm_unknown"])),
            ("right before the guard", share(results["accuracy"])),
            ("right after it", share(results["accuracy_guarded"])),
        ],
        caption="Harm done to clean images, with 95 % Wilson intervals",
    )
    parts: list[Html] = [tag("h3", "Clean images, flagged by mistake")]
    if clean is not None:
        nodes = [
            Node("clean images", 0, GREY),
            Node(PASSED, 1, THIRD),
            Node(FLAGGED, 1, CLEAN),
            Node(KEPT, 2, THIRD),
            Node(ERROR, 2, GREY),
            Node(LOST, 2, FOURTH),
            Node(MISTAKEN, 2, ATTACKED),
        ]
        links = clean_links(clean, float(card["guard"]["alpha"]))
        order = sorted(links, key=lambda pair: (pair[0] != "clean images", pair[0] == FLAGGED))
        order.sort(key=lambda pair: pair == ("clean images", FLAGGED))
        shown = {pair: links[pair] for pair in order}
        caption = f"All {results['n']} clean test images, whether the model has them right or not."
        label = "What becomes of clean images"
        parts.append(figure(flow(nodes, shown, label=label), caption, wide=True))
    return join((*parts, harm))
