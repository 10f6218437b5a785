"""The page of all cards of explanations, Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrpguard.evaluation.explanations.card import KIND, METRICS, SCHEMA
from lrpguard.evaluation.explanations.measure import PLAIN
from lrpguard.evaluation.paper.card import load_card
from lrpguard.smoothing import PAPER_N

Card = Mapping[str, Any]

MARKS = {"better": "+", "worse": "-", "same": "="}

NAMED = 3
"""Maps that the summary names, where there are no more of them."""

SHORT = f"""\
What smoothing did to each figure, rule by rule, where the difference is larger than chance. Most
maps behind it have far fewer copies than the paper's {PAPER_N}: more of them lower the noise of a
smoothed map further, and do not change what it converges to."""

LEGEND = """\
The paper asked six people which map they liked. Here is what can be counted instead, for the class
that the model predicts, each rule plain and smoothed on the same images:

- **Relevance gain** (larger is better, 0 knows nothing, at most 1): pixel-flipping. The most
  relevant pixels are replaced by the image's mean colour, or the least relevant ones; how much more
  the probability of the class falls in the first case, mean over the shares of pixels replaced.
  Images with pixels replaced are not natural, and a model may object to that as well as to what is
  lost.
- **Gain, imputed**: the same, the removed pixels following from their neighbours, with a little
  noise (ROAD, noisy linear imputation), so that nothing shows which they were.
- **Max-sensitivity** (smaller is steadier): the largest change of the map, relative to it, when the
  pixels change a little. The noise of SmoothLRP follows from the image, so it is drawn anew for a
  changed one, and counts.
- **Conservation gap** (smaller is better): distance of the map's sum from the explained logit,
  relative to it. Smoothed maps add up to the mean logit of the noisy copies less what biases take.
- **Like a random model's** (smaller is better): rank correlation of the map's absolute values with
  those of the same model with shuffled weights. A map that stays alike shows the image rather than
  the model. Mere noise in a map lowers it, too, so read it beside the gain.
- **Sparseness**: Gini index, 0 to 1. Sparser is easier to read, and no better by itself.

After each figure stands its 95 % interval, a bootstrap over images; mean or median over images as
the head of the column says. Marks compare with the plain map of the same images: `+` better (or
sparser), `-` worse, where the paired 95 % interval of the difference leaves out 0, `=` otherwise.
In twenty comparisons one mark is expected by chance. LRP-0 has no rows of its own: in float32 its
maps are those of `epsilon` ([method.md](method.md), section 1)."""


def read_cards(folder: Path) -> list[dict[str, Any]]:
    """Read the cards in a folder, ``explanations_*.json``.

    Raises:
        LoadingError: One cannot be read, or is no card of this schema.
    """
    return [
        load_card(path, what="card of explanations", schema=SCHEMA, kind=KIND)
        for path in sorted(folder.glob("explanations_*.json"))
    ]


def explanations_page(cards: Sequence[Card], *, notes: str = "") -> str:
    """Return the page.

    Args:
        cards: Measurements, in the order of the page.
        notes: What people wrote about them; it stands first.
    """
    parts = [
        "# Is SmoothLRP a better explanation?",
        "Made by `scripts/make_explanations.py` from the cards in `docs/results/`; do not edit.",
        *([notes.strip()] if notes.strip() else []),
        "## Counted",
        SHORT,
        *(
            f"**{_title(card)}**, a smoothed map against its plain one:\n\n{_short(card)}"
            for card in cards
        ),
        "## What is measured",
        LEGEND,
    ]
    for card in cards:
        parts += [f"## {_title(card)}, {card['data']}", _facts(card), _table(card)]
    return "\n\n".join(parts) + "\n"


def _title(card: Card) -> str:
    """Return the model's name, with the copies where all its maps have as many."""
    copies = {way["n"] for way in card["plan"]["grid"]}
    return f"{card['model']} with {copies.pop()} copies" if len(copies) == 1 else card["model"]


def _short(card: Card) -> str:
    """Say for each figure how often smoothing helped and hurt, and name the few."""
    lines = []
    for name, metric in METRICS.items():
        verdicts: dict[str, list[str]] = {}
        for rule, configurations in card["rules"].items():
            for configuration, values in configurations.items():
                if configuration != PLAIN and name in values:
                    place = f"`{rule}` with {configuration}"
                    verdicts.setdefault(values[name]["verdict"], []).append(place)
        total = sum(map(len, verdicts.values()))
        if total:
            words = ("sparser", "less sparse") if name == "gini" else ("better", "worse")
            up, down = (
                _counted(word, verdicts.get(verdict, []))
                for word, verdict in zip(words, ("better", "worse"), strict=True)
            )
            lines.append(f"- {metric.title.capitalize()}: {up}; {down}; of {total} smoothed maps.")
    return "\n".join(lines)


def _counted(word: str, places: Sequence[str]) -> str:
    named = f" ({', '.join(places)})" if 0 < len(places) <= NAMED else ""
    return f"{word} in {len(places)}{named}"


def _facts(card: Card) -> str:
    plan, versions = card["plan"], card["versions"]
    shares = ", ".join(f"{100 * fraction:g}" for fraction in plan["fractions"])
    return (
        f"    {card['command']}\n\n"
        f"{plan['images']} images drawn with seed {plan['seed']} (indices in the card), of which "
        f"the first {plan['probed']} for sensitivity ({plan['changes']} changes of at most "
        f"{plan['radius']:g} a pixel) and random weights. Pixels replaced: {shares} %. CPU, "
        f"{card['threads']} thread(s), {card['seconds']} s of processor time. lrpguard "
        f"{versions['lrpguard']}, torch {versions['torch']}, numpy {versions['numpy']}, python "
        f"{versions['python']}."
    )


def _table(card: Card) -> str:
    known = [
        name
        for name in METRICS
        if any(name in values for rule in card["rules"].values() for values in rule.values())
    ]
    heads = [f"{METRICS[name].title}, {METRICS[name].word}" for name in known]
    lines = ["| " + " | ".join(["rule", "map", *heads]) + " |", "| --- " * (len(known) + 2) + "|"]
    for rule, configurations in card["rules"].items():
        for configuration, values in configurations.items():
            cells = [_cell(values.get(name)) for name in known]
            first = f"`{rule}`" if configuration == PLAIN else ""
            lines.append("| " + " | ".join([first, configuration, *cells]) + " |")
    return "\n".join(lines)


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    value, low, high = (f"{figure[key]:.3g}" for key in ("value", "low", "high"))
    mark = MARKS[figure["verdict"]] if "verdict" in figure else ""
    return f"{value} ({low} to {high}) {mark}".rstrip()
