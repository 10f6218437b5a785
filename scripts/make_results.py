"""Write docs/results.md from the cards of evaluations.

    lrpguard evaluate --name resnet20 ... --out build/resnet20
    python scripts/make_results.py build/resnet20/card.json

takes that card into docs/results/ as evaluation_resnet20.json (one of clean images and controls
alone as evaluation_resnet20_clean.json), and makes the page of all cards there, and the lines of
them in README.md. Without arguments it only makes these. What docs/results_notes.md says, where it
is there, stands at the head of the page.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from lrpguard.errors import LrpGuardError
from lrpguard.evaluation.brief import with_brief
from lrpguard.evaluation.cards import is_attacked, read_card
from lrpguard.evaluation.paper.card import write_card
from lrpguard.evaluation.tables import results_page

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:
    """Take cards in, and write the page; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cards", nargs="*", type=Path, help="cards to take into docs/results/")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page goes")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="where lines go")
    args = parser.parse_args(arguments)
    results: Path = args.docs / "results"
    try:
        for path in args.cards:
            card = read_card(path)
            name = re.sub(r"[^A-Za-z0-9]+", "_", str(card["model"])).strip("_")
            name += "" if is_attacked(card) else "_clean"
            write_card(card, results / f"evaluation_{name}.json")
        cards = [read_card(path) for path in sorted(results.glob("evaluation_*.json"))]
    except LrpGuardError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    notes = args.docs / "results_notes.md"
    text = results_page(cards, notes=notes.read_text(encoding="utf-8") if notes.is_file() else "")
    (args.docs / "results.md").write_text(text, encoding="utf-8")
    readme: Path = args.readme
    readme.write_text(with_brief(readme.read_text(encoding="utf-8"), cards), encoding="utf-8")
    print(f"wrote results.md of {len(cards)} cards, and their lines in {readme.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
