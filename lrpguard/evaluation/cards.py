"""The cards of evaluations: how they are read, and what they are called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrpguard.errors import LoadingError
from lrpguard.evaluation.evaluate import SCHEMA

Card = Mapping[str, Any]


def read_card(path: Path) -> dict[str, Any]:
    """Read a card.

    Raises:
        LoadingError: It cannot be read, or is no card of this schema.
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadingError(f"the card {path} cannot be read ({error}). Run its command.") from error
    good = isinstance(card, dict) and card.get("kind") == "evaluation"
    if not good or card.get("schema") != SCHEMA:
        raise LoadingError(
            f"{path} is no evaluation card of schema {SCHEMA}. Run its command again."
        )
    return dict(card)


def is_attacked(card: Card) -> bool:
    """Say whether a card is of attacks, and not of clean images and controls alone."""
    return bool(card["results"]["attacks"])


def card_title(card: Card) -> str:
    """Return model and data, and whether nothing was attacked."""
    alone = "" if is_attacked(card) else ", clean images alone"
    return f"{card['model']}, {card['data']}{alone}"
