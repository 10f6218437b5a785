"""Fewer copies: where time is short, and by early stopping; over real HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lrpguard import Calibration, Guard, Looks, Smoothing
from lrpguard.demo.digits import load_digit_splits
from lrpguard.errors import CalibrationMismatchError
from lrpguard.serving.chain import records
from lrpguard.serving.config import selftest_beside
from lrpguard.serving.opening import open_guard
from lrpguard.serving.recalibration import propose
from lrpguard.serving.replay import by_hash, replay
from lrpguard.serving.selftest import SelfTest
from lrpguard.serving.sizes import run_choices
from lrpguard.views import VIEW_COUNT
from tests.serving.conftest import MODEL, Files, eight_bit, png, running, small_config
from tests.serving.models import controlled

httpx = pytest.importorskip("httpx")

LOOKS = Looks((2, 4, 8), (0.6, 0.4), (0.3, 0.5, 1.0))


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A calibration with looks, and the test digits."""
    file = tmp_path_factory.mktemp("looks") / "guard.safetensors"
    splits = load_digit_splits()
    guard = Guard(controlled(), smoothing=Smoothing(n=8, sigma=0.1))
    clean = eight_bit(splits.calibration.images[:160])
    guard.calibrate(clean.split(40), looks=LOOKS).save(file)
    SelfTest.make(guard, clean[0], key=None).save(selftest_beside(file))
    test = eight_bit(splits.test.images[:12])
    return Files(file, test, test[:1])


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a run was measured, nothing fits."""
    monkeypatch.setattr("lrpguard.serving.worker.HEADROOM", 1e9)


def predict(url: str, image: Any) -> dict[str, Any]:
    answer = httpx.post(f"{url}/predict", content=png(image), timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def judged_again(folder: Path, files: Files, *assignments: str) -> list[bool]:
    """Replay a trail; say of each line whether all of it was reproduced exactly."""
    opened = open_guard(small_config(files, *assignments), {})
    lines = records(folder, key=b"")
    return [line.same for line in replay(lines, by_hash(files.clean), opened, tolerance=0)]


class TestDeadline:
    def test_the_copies_that_fit_are_made_marked_and_reproduced(
        self, looks: Files, hurried: None, tmp_path: Path
    ) -> None:
        settings = ("answer.expose_scores=true", f"audit.folder={tmp_path / 'audit'}")
        with running(small_config(looks, *settings)) as url:
            first, second = predict(url, looks.clean[0]), predict(url, looks.clean[1])
        assert (first["copies"], second["copies"]) == (8, 2)  # at first nothing is known
        expected = Guard(controlled(), calibration=looks.calibration)(looks.clean[1:2], copies=2)
        assert second["score"] == float(expected.score[0])
        assert second["p_value"] == float(expected.p_value[0])
        lines = list(records(tmp_path / "audit", key=b""))
        assert [line["copies"] for line in lines] == [8, 2]
        known = Calibration.load(looks.calibration)
        assert [line["threshold"] for line in lines] == [known.threshold, known.at(2).threshold]
        assert judged_again(tmp_path / "audit", looks) == [True, True]

    def test_all_are_made_where_the_policy_says_so(self, looks: Files, hurried: None) -> None:
        with running(small_config(looks, "policy.on_deadline=all")) as url:
            assert [predict(url, image)["copies"] for image in looks.clean[:2]] == [8, 8]

    def test_all_are_made_where_nothing_else_was_calibrated(
        self, files: Files, hurried: None
    ) -> None:
        with running(small_config(files)) as url:
            assert [predict(url, image)["copies"] for image in files.clean[:2]] == [4, 4]

    def test_a_slow_model_is_answered_in_time_with_fewer(
        self, looks: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By the clock alone: all copies take longer than the deadline allows for."""

        def slow(noisy: bool) -> None:
            time.sleep(0.65 if noisy else 0.0)  # views, 2, 2 and 4 copies: 2.6 s for all

        with running(small_config(looks, "limits.deadline_ms=3000")) as url:
            monkeypatch.setattr("tests.serving.models._act_on_files", slow)
            seen = []
            for image in looks.clean:
                answer = httpx.post(f"{url}/predict", content=png(image), timeout=60)
                seen.append(answer.json().get("copies"))
                if seen[-1] in (2, 4):
                    break
        assert seen[-1] in (2, 4), seen

    def test_open_inference_protocol_tells_the_copies(self, looks: Files, hurried: None) -> None:
        tensor = {"name": "images", "datatype": "FP32", "shape": [2, 1, 8, 8]}
        body = {"inputs": [tensor | {"data": looks.clean[:2].flatten().tolist()}]}
        with running(small_config(looks)) as url:
            answers = [
                httpx.post(f"{url}/v2/models/{MODEL}/infer", json=body, timeout=60).json()
                for _ in range(2)
            ]
        found = [
            next(o["data"] for o in answer["outputs"] if o["name"] == "copies")
            for answer in answers
        ]
        assert found == [[8, 8], [2, 2]]


class TestStopping:
    def test_is_reproduced_from_the_trail(self, looks: Files, tmp_path: Path) -> None:
        settings = ("guard.stopping=true", "answer.expose_scores=true")
        audit = f"audit.folder={tmp_path / 'audit'}"
        with running(small_config(looks, *settings, audit)) as url:
            answers = [predict(url, image) for image in looks.clean]
            metrics = httpx.get(f"{url}/metrics").text
        guard = Guard(controlled(), calibration=looks.calibration, stopping=True)
        expected = guard(looks.clean)
        assert [answer["copies"] for answer in answers] == expected.copies.tolist()
        assert [answer["p_value"] for answer in answers] == expected.p_value.tolist()
        assert len(set(expected.copies.tolist())) > 1, "too easy to show anything"
        early = int((expected.copies == 2).sum())
        assert f'lrpguard_judged_images_total{{copies="2"}} {early:.1f}' in metrics
        assert judged_again(tmp_path / "audit", looks, "guard.stopping=true") == [True] * 12
        with pytest.raises(CalibrationMismatchError, match="early stopping"):
            judged_again(tmp_path / "audit", looks)
        known = open_guard(small_config(looks), {})
        lines = records(tmp_path / "audit", key=b"")
        with pytest.raises(CalibrationMismatchError, match="calibrate anew"):
            propose(lines, known.calibration, known.calibration_id, last=100)

    def test_the_number_of_copies_is_withheld_with_the_scores(self, looks: Files) -> None:
        with running(small_config(looks, "guard.stopping=true")) as url:
            assert predict(url, looks.clean[0])["copies"] is None


def test_ways_to_run_and_their_work() -> None:
    guard = Guard(controlled(), smoothing=Smoothing(n=8, sigma=0.1))
    guard.calibrate([torch.rand(100, 1, 8, 8)], detector="paper", looks=LOOKS)
    assert run_choices(guard, fewer=True) == {2: 5, 4: 9, 8: 17}
    assert run_choices(guard, fewer=False) == {8: 17}
    guard.stopping = True
    assert run_choices(guard, fewer=True) == {2: 5, 4: 9, None: 1 + 2 * LOOKS.most_copies}
    guard.calibrate([torch.rand(100, 1, 8, 8)], looks=LOOKS)
    assert run_choices(guard, fewer=True)[2] == 1 + VIEW_COUNT + 4
