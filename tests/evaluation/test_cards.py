"""Cards are read back, named, and told apart; other files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lrpguard.errors import LoadingError
from lrpguard.evaluation.cards import card_title, is_attacked, read_card
from lrpguard.evaluation.evaluate import SCHEMA


def card(attacks: dict[str, Any]) -> dict[str, Any]:
    results = {"attacks": attacks}
    head = {"schema": SCHEMA, "kind": "evaluation", "model": "net", "data": "images"}
    return head | {"results": results}


def test_a_card_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    file.write_text(json.dumps(card({})), encoding="utf-8")
    assert read_card(file) == card({})


def test_clean_images_alone_are_named_so() -> None:
    assert not is_attacked(card({}))
    assert card_title(card({})) == "net, images, clean images alone"
    assert is_attacked(card({"ead": {}}))
    assert card_title(card({"ead": {}})) == "net, images"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        json.dumps(card({}) | {"schema": SCHEMA - 1}),
        json.dumps(card({}) | {"kind": "paper"}),
    ],
)
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(LoadingError, match="Run its command"):
        read_card(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadingError, match="cannot be read"):
        read_card(tmp_path / "card.json")
