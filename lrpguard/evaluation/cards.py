"""The cards of evaluations: how they are read, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrpguard.evaluation.evaluate import SCHEMA
from lrpguard.evaluation.paper.card import load_card

Card = Mapping[str, Any]


def read_card(path: Path) -> dict[str, Any]:
    """Read a card.

    Raises:
        LoadingError: It cannot be read, or is no card of this schema.
    """
    return load_card(path, what="evaluation card", schema=SCHEMA, kind="evaluation")


def is_attacked(card: Card) -> bool:
    """Say whether a card is of attacks, and not of clean images and controls alone."""
    return bool(card["results"]["attacks"])


def card_title(card: Card) -> str:
    """Return model and data, and whether nothing was attacked."""
    alone = "" if is_attacked(card) else ", clean images alone"
    return f"{card['model']}, {card['data']}{alone}"
