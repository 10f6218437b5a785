"""Write docs/threat-model.md from the cards of red teams.

    lrpguard attack --name resnet20 ... --out build/red_team
    python scripts/red_team.py build/red_team/card.json

takes that card into docs/results/ as red_team_resnet20.json, and makes the page of all such cards
there, and of those of scripts/harden.py and scripts/train_robust.py. Without arguments it only
makes the page. What docs/threat_model_notes.md says, where it is
there, stands at the head of the page.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from lrpguard.evaluation.paper.card import write_card
from lrpguard.redteam import threat_page

ROOT = Path(__file__).resolve().parents[1]

CARDS = ("red_team_*.json", "hardening_*.json", "robust_*.json")
"""Cards of the page, in its order."""


def read_cards(results: Path) -> list[dict[str, Any]]:
    """Return the page's cards of a folder."""
    paths = [path for pattern in CARDS for path in sorted(results.glob(pattern))]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def main(arguments: list[str]) -> int:
    """Take cards in, and write the page; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cards", nargs="*", type=Path, help="cards to take into docs/results/")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page goes")
    args = parser.parse_args(arguments)
    results: Path = args.docs / "results"
    for path in args.cards:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card.get("kind") != "red_team":
            print(f"{path} is no card of `lrpguard attack`.", file=sys.stderr)
            return 1
        name = re.sub(r"[^A-Za-z0-9]+", "_", str(card["model"])).strip("_")
        write_card(card, results / f"red_team_{name}.json")
    cards = read_cards(results)
    notes = args.docs / "threat_model_notes.md"
    text = threat_page(cards, notes=notes.read_text(encoding="utf-8") if notes.is_file() else "")
    (args.docs / "threat-model.md").write_text(text, encoding="utf-8")
    print(f"wrote threat-model.md of {len(cards)} cards")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
