"""The paper's experiment: run it, count, and print it beside the paper's own row."""

from lrpguard.evaluation.paper.card import make_card, write_card
from lrpguard.evaluation.paper.experiment import (
    THRESHOLD_IMAGES,
    Settings,
    Splits,
    attack,
    run_header,
    run_paper,
)
from lrpguard.evaluation.paper.record import Outcome, Row, Threshold, choose_threshold
from lrpguard.evaluation.paper.table import card_table, reproduction_page

__all__ = [
    "THRESHOLD_IMAGES",
    "Outcome",
    "Row",
    "Settings",
    "Splits",
    "Threshold",
    "attack",
    "card_table",
    "choose_threshold",
    "make_card",
    "reproduction_page",
    "run_header",
    "run_paper",
    "write_card",
]
