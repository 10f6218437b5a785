"""Markdown from the cards of runs: the paper's row, and ours beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrpguard.evaluation.metrics import proportion
from lrpguard.evaluation.paper.card import SCHEMA, load_card

Card = Mapping[str, Any]

PAPER_ATTEMPTED = 300
PAPER_SUCCESSFUL = 253
PAPER_DETECTED = 138
PAPER_RESTORED = 44
"""The paper's four counts, on VGG16 (Raulf et al. 2021, section 3.2)."""

_UNSTATED = "not stated"

_INTRODUCTION = """\
# The paper's experiment, repeated

Made by `scripts/reproduce_paper.py` from the cards in `docs/results/`; do not edit.

Raulf et al. 2021, section 3.2: (i) attack images by PGD (5/255, 10 iterations) and keep the
successful ones, (ii) place a threshold on the mean relevance variance from 20 other images and
their adversarial versions, (iii) count the adversarial images above it, (iv) whiten the 1,000
pixels of highest variance (2 % of the pixels on CIFAR-10) of each of those until its label
changes, and count how often that is the true label.

Shares are followed by their 95 % Wilson interval and the counts.
"""

_CHOICES = """\
## What the paper leaves open, and what is done here

- **Success.** "Leading to a misclassification" may or may not count images that were misclassified
  before. *Successful* here: correct before and wrong after. The looser count stands beside it. Both
  rows show the paper's 253 of 300. VGG16 is right on 71 % of the ImageNet validation set, about 214
  of 300 images, so the paper's 253 are likely the looser count.
- **Attack.** PGD in the maximum norm, random start, step 2.5 eps / 10, all 10 steps, away from the
  true label; its result and the clean images are rounded to 8 bits. The paper used Foolbox, whose
  versions of that time stop at the first image that changes the label. The cards *stop early* do
  that; their adversarial images lie close to the decision boundary.
- **Threshold.** The paper's is "mean based". Here: the one of highest balanced accuracy on the 20
  clean and 20 attacked images (all 20, successful or not), midway between two neighbouring scores,
  higher meaning adversarial. What the opposite side would have reached on the same images is a
  remark, and used for nothing.
- **False positives.** The paper states none. Here they are counted on the clean versions of the
  tested images, correctly classified or not, none of which had a part in a threshold.
- **Conformal threshold.** Placed on other clean images alone, so that 5 % of clean images are
  flagged; not in the paper.
- **Rounds of whitening.** The paper repeats until the label changes. Here at most the number of
  rounds below; a label that has not changed then is not restored. The control whitens as many
  random pixels.
- **Copies that keep their label.** Mean over images, with a normal interval over images.
"""


def card_table(card: Card) -> str:
    """Return the table of one card beside the paper's row."""
    return _table([card])


def reproduction_page(folder: Path) -> str:
    """Return the page of all cards ``paper_*.json`` in a folder.

    Raises:
        LoadingError: A card cannot be read, or is of another schema.
    """
    cards = [
        load_card(path, what="card", schema=SCHEMA) for path in sorted(folder.glob("paper_*.json"))
    ]
    parts = [_INTRODUCTION, _table(cards), "", *_readings(cards), "", _CHOICES, _runs(cards)]
    return "\n".join(parts)


def _title(card: Card) -> str:
    return str(card["model"]) + (", stop early" if card["settings"]["stop_early"] else "")


def _table(cards: Sequence[Card]) -> str:
    lines = [
        ["", "paper, VGG16", *(_title(card) for card in cards)],
        ["---"] * (2 + len(cards)),
        *([name, paper, *(cell(card) for card in cards)] for name, paper, cell in _ROWS),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(*path: str) -> Callable[[Card], str]:
    """Return a function from a card to the share at a path in it, as text."""

    def read(card: Card) -> str:
        found: Any = card
        for name in path:
            found = found[name]
        return str(proportion(found["successes"], found["n"]))

    return read


def _kept(kind: str) -> Callable[[Card], str]:
    def read(card: Card) -> str:
        found = card["copies_that_keep_their_label"][kind]
        if found["low"] is None:
            return f"- (n = {found['n']})"
        mean, low, high = (f"{100 * found[name]:.1f}" for name in ("mean", "low", "high"))
        return f"{mean} % ({low}-{high})"

    return read


def _auroc(card: Card) -> str:
    value = card["auroc"]["all_clean"]
    return "-" if value is None else f"{value:.3f}"


def _balanced(card: Card) -> str:
    found = card["threshold"]
    here, other = found["balanced_accuracy"], found["other_side_balanced_accuracy"]
    return f"{100 * here:.1f} % (opposite side: {100 * other:.1f} %)"


def _conformal_n(card: Card) -> str:
    found = card["conformal"]
    low, high = (f"{100 * end:.1f}" for end in found["fpr_band_95"])
    return f"{found['n']} (promises {low}-{high} %)"


def _rounds(card: Card) -> str:
    found = card["restoration"]
    values = (found["median_rounds"], found["control_median_rounds"])
    here, control = ("-" if value is None else f"{value:g}" for value in values)
    return f"{here} / {control}, at most {card['settings']['max_rounds']}"


_PAPER_SUCCESS = str(proportion(PAPER_SUCCESSFUL, PAPER_ATTEMPTED))

_ROWS: tuple[tuple[str, str, Callable[[Card], str]], ...] = (
    ("images attacked", str(PAPER_ATTEMPTED), lambda card: str(card["attack"]["attempted"])),
    ("correctly classified before", _UNSTATED, _cell("attack", "correct")),
    (
        "(i) **successful**: correct before, wrong after; of all attacked",
        _PAPER_SUCCESS,
        _cell("attack", "successful_of_attempted"),
    ),
    ("(i) of those correct before", _UNSTATED, _cell("attack", "successful_of_correct")),
    (
        "(i) wrong after, whatever before; of all attacked",
        _PAPER_SUCCESS,
        _cell("attack", "misled_of_attempted"),
    ),
    ("(ii) balanced accuracy on the images of the threshold", _UNSTATED, _balanced),
    (
        "(iii) **detected**, of the successful",
        str(proportion(PAPER_DETECTED, PAPER_SUCCESSFUL)),
        _cell("paper", "detected_of_successful"),
    ),
    ("(iii) detected, of all wrong after", _UNSTATED, _cell("paper", "detected_of_misled")),
    (
        "(iii) **false positives** of the same threshold",
        _UNSTATED,
        _cell("paper", "false_positives"),
    ),
    (
        "(iv) **restored**, of the detected",
        str(proportion(PAPER_RESTORED, PAPER_DETECTED)),
        _cell("restoration", "restored_of_detected"),
    ),
    (
        "(iv) random-pixel control, of the detected",
        _UNSTATED,
        _cell("restoration", "control_restored_of_detected"),
    ),
    (
        "(iv) restored, of the successful",
        str(proportion(PAPER_RESTORED, PAPER_SUCCESSFUL)),
        _cell("restoration", "restored_of_successful"),
    ),
    ("(iv) rounds until the label changed, median / control", _UNSTATED, _rounds),
    ("AUROC of the score, successful against all clean", _UNSTATED, _auroc),
    ("conformal threshold at 5 %: clean images that place it", "-", _conformal_n),
    ("conformal: realised false positives", "-", _cell("conformal", "false_positives")),
    (
        "conformal: **detected**, of the successful",
        "-",
        _cell("conformal", "detected_of_successful"),
    ),
    ("noisy copies of clean images that keep their label", _UNSTATED, _kept("clean")),
    ("noisy copies of successful ones that keep theirs", _UNSTATED, _kept("adversarial")),
)


def _readings(cards: Sequence[Card]) -> list[str]:
    """Say of each card what its numbers allow to say."""
    lines = [
        "## What these numbers say",
        "",
        "Differences count where the intervals do not overlap.",
    ]
    for card in cards:
        at_paper, at_conformal = (
            _compare(found["detected_of_successful"], found["false_positives"])
            for found in (card["paper"], card["conformal"])
        )
        whitened = card["restoration"]
        restored = _compare(
            whitened["restored_of_detected"], whitened["control_restored_of_detected"]
        )
        lines += [
            "",
            f"**{_title(card)}.** At the paper's threshold the share of adversarial images above "
            f"it is {at_paper} that of clean ones; at the conformal threshold it is "
            f"{at_conformal} that of clean ones. The share that whitening by variance restores is "
            f"{restored} that of random pixels.",
        ]
    return lines


def _compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    if first["low"] is None or second["low"] is None:
        return "not comparable with"
    if first["low"] > second["high"]:
        return "above"
    if first["high"] < second["low"]:
        return "below"
    return "not distinguishable from"


def _runs(cards: Sequence[Card]) -> str:
    lines = [
        "## Commands",
        "",
        "Weights and images come from the folder that `LRPGUARD_DATA` names, or from the options "
        "`--weights`, `--images`, `--calibration-images`, `--cifar`. VGG16, the paper's network, "
        "is the default of `--model`; its weights are downloaded. The table alone: "
        "`python scripts/reproduce_paper.py --tables`.",
        "",
    ]
    for card in cards:
        settings, splits = card["settings"], card["splits"]
        versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
        lines += [
            f"### {_title(card)}",
            "",
            f"    {card['command']}",
            "",
            f"n = {settings['n']} copies, sigma = {settings['sigma']}, LRP-epsilon with "
            f"{settings['composite']['parameters']['epsilon']:g}, seed {settings['seed']}; "
            f"{splits['threshold']['n']} images place the threshold, {splits['conformal']['n']} "
            f"the conformal one, {splits['test']['n']} are tested (indices in the card). "
            f"{card['device']}, {card['threads']} thread(s), {card['seconds']} s of wall time on "
            f"a shared machine. {versions}.",
            "",
        ]
    return "\n".join(lines)
