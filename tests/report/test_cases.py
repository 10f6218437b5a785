"""Which cases are shown."""

from __future__ import annotations

from lrpguard.report.cases import MOST, chosen_cases, gallery
from tests.report.conftest import attacked_images, clean_images, judged


def test_the_worst_come_first_and_an_image_once() -> None:
    clean = clean_images([0, 1, 9, 2, 3], [1.0, 0.8, 0.01, 0.5, 0.4])
    first = attacked_images(
        [1, 2, 9, 10, 11],
        name="a",
        final=[1, 1, 2, 0, 0],
        p_values=[0.9, 0.7, 0.02, 0.01, 0.01],
    )
    second = attacked_images(
        [0, 8, 8, 8, 8], name="b", final=[1, -1, -1, -1, -1], p_values=[1.0, 0.03, 0.03, 0.03, 0.03]
    )
    found = list(chosen_cases(judged(clean, first, second), alpha=0.05).values())
    passed, wrong, mistakes, best = found
    assert [(case.attack, case.place) for case in passed] == [("b", 0), ("a", 1)]
    assert [(case.attack, case.place) for case in wrong] == [("a", 2)]
    assert [(case.attack, case.place) for case in mistakes] == [(None, 2)]
    assert [(case.attack, case.place) for case in best] == [("a", 4), ("a", 3)]
    assert all(len(cases) <= MOST for cases in found)


def test_cases_without_pictures_are_listed() -> None:
    clean = clean_images([0], [0.01])
    cases = chosen_cases(judged(clean), alpha=0.05)
    page = gallery(cases, {"suite": []}, {})
    assert "0 (image0)" in page
    assert page.count("None.") == 3
    assert "--data" in page
