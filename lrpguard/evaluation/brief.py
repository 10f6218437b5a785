"""The few lines of evaluations that the README shows, made from their cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lrpguard.conformal import card_images_text
from lrpguard.evaluation.cards import Card, is_attacked
from lrpguard.evaluation.outcomes import GUARD
from lrpguard.evaluation.tables import markdown, percent, share, titles, value

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
"""What the lines stand between."""

SHOWN = (
    "fgsm_4",
    "pgd_1_10",
    "pgd_2_10",
    "pgd_8_10",
    "pgd_l2_0.5",
    "apgd_ce_4",
    "apgd_dlr_4",
    "cw_0",
    "deepfool",
    "ead",
    "square_8",
    "patch",
)
"""Attacks that are shown one by one."""


def brief(cards: Sequence[Card]) -> str:
    """Return the table of all attacked cards side by side, and a line on each card.

    Args:
        cards: Evaluations, at least one of them attacked; such a one has every attack of ``SHOWN``.
    """
    alone = [card for card in cards if not is_attacked(card)]
    cards = [card for card in cards if is_attacked(card)]
    names = titles(cards[0])
    rows = [
        [names[attack], *(_attack(card["results"]["attacks"][attack]) for card in cards)]
        for attack in SHOWN
    ]
    rows += [
        [title, *(cell(card) for card in cards)]
        for title, cell in (
            ("**mean over its attacks**, flagged", _mean),
            ("AUROC, mean", lambda card: value(_suite(card)["auroc"])),
            ("worst attack, flagged", _worst),
            (
                "**fool model and guard**, the best attack for each image",
                lambda card: share(card["results"]["per_sample"]["detectors"][GUARD]["5"]["sr"]),
            ),
            (
                "clean images flagged",
                lambda card: share(card["results"]["clean"]["fpr"][GUARD]["5"]),
            ),
            (
                "clean right label made wrong",
                lambda card: share(card["results"]["clean"]["harm_wrong"]),
            ),
            (
                "clean right label made `unknown`",
                lambda card: share(card["results"]["clean"]["harm_unknown"]),
            ),
        )
    ]
    head = ("flagged; restored; of successful attacks", *(str(card["model"]) for card in cards))
    lines = [*(_line(card) for card in cards), *(_clean_line(card) for card in alone)]
    return "\n".join([markdown(head, rows), "", *lines])


def with_brief(text: str, cards: Sequence[Card]) -> str:
    """Return a page with the lines between its marks made anew; one without marks as it is."""
    if BEGIN not in text or END not in text or not cards:
        return text
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n{brief(cards)}\n{END}{after}"


def _suite(card: Card) -> Mapping[str, Any]:
    found: Mapping[str, Any] = card["results"]["suite"]["detectors"][GUARD]
    return found


def _attack(found: Mapping[str, Any]) -> str:
    flagged, right = found["detectors"][GUARD]["5"]["tpr"], found["restored_of_success"]
    return f"{share(flagged)}; {share(right)}"


def _mean(card: Card) -> str:
    count = len(card["results"]["suite"]["attacks"])
    return f"{percent(_suite(card)['5']['mean_tpr'])} of {count}"


def _worst(card: Card) -> str:
    worst = _suite(card)["5"]["worst"]
    return f"{titles(card)[worst['attack']]}: {share(worst)}"


def _clean_line(card: Card) -> str:
    """Return one item of a list on a card of clean images and controls alone."""
    guard, clean = card["guard"], card["results"]["clean"]
    return (
        f"- {card['model']}, {card['data']}, more clean images, those above among them: "
        f"{card_images_text(guard)}; {card['splits']['test']['n']} others are judged; "
        f"n = {guard['n']}, sigma = {guard['sigma']:g}, seed {card['seed']}. "
        f"{share(clean['fpr'][GUARD]['5'])} are flagged. "
        f"A right label becomes a wrong one for {share(clean['harm_wrong'])}, and `unknown` for "
        f"{share(clean['harm_unknown'])}."
    )


def _line(card: Card) -> str:
    """Return one item of a list: what was evaluated, and what stands beside it."""
    guard, results = card["guard"], card["results"]
    used = card_images_text(guard)
    text = (
        f"- {card['model']}, {card['data']}: of the clean images {used}; "
        f"{card['splits']['test']['n']} others are judged, {results['per_sample']['attempts']} of "
        f"them right and attacked; n = {guard['n']}, sigma = {guard['sigma']:g}, seed "
        f"{card['seed']}. "
    )
    noise = results["controls"].get("noise")
    if noise is not None:
        flagged = share(noise["flagged"][GUARD]["5"])
        text += (
            f"With Gaussian noise, no attack, {flagged} are flagged; the label is right for "
            f"{share(noise['accuracy'])} of them before the guard, which makes it wrong for "
            f"{share(noise['harm_wrong'])} and `unknown` for {share(noise['harm_unknown'])}. "
        )
    trained = results.get("unseen", {})  # fitted with attacks: of another league
    ahead = {k: v for k, v in results["suite"]["guard_ahead_of"].items() if k not in trained}
    if ahead:
        name = min(ahead, key=lambda other: float(ahead[other]["5"]["value"]))
        points = [100 * ahead[name]["5"][end] for end in ("value", "low", "high")]
        text += (
            f"On the mean {points[0]:.1f} points ({points[1]:.1f} to {points[2]:.1f}) ahead of the "
            f"best of {len(ahead)} other detectors, `{name}`, on the same images"
        )
        text += "; one half fits these, the other calibrates." if guard.get("crossed") else "."
    return text.rstrip()
