"""serve, selftest, audit and recalibrate, from the shell."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrpguard import Calibration, Guard
from lrpguard.demo.digits import load_digit_splits, load_digits_model
from lrpguard.loading import Preprocessing, load_data
from lrpguard.noise import image_digest
from lrpguard.serving.answer import judged
from lrpguard.serving.audit import AuditTrail
from lrpguard.serving.chain import chain_key, file_name
from lrpguard.serving.config import PolicySection, selftest_beside
from lrpguard.serving.configure import load_config
from lrpguard.serving.opening import open_guard
from lrpguard.serving.records import Call, audit_lines
from lrpguard.serving.selftest import SelfTest
from tests.cli.conftest import MODEL, write_digits
from tests.serving.conftest import wait_until

Run = Callable[..., Any]


@pytest.fixture
def config(tmp_path: Path, calibration: Path) -> Path:
    file = tmp_path / "guard.toml"
    file.write_text(
        f'[model]\nspec = "{MODEL}"\nimage_size = [8, 8]\ndevice = "cpu"\n'
        f'[guard]\ncalibration = "{calibration}"\nselftest = "test.safetensors"\n'
        '[audit]\nfolder = "audit"\n'
    )
    return file


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_digits(tmp_path / "images", load_digit_splits().test.images[:40])


@pytest.fixture
def trail(config: Path, images: Path) -> Path:
    """The trail that a service would have written of the images."""
    opened = open_guard(load_config(config, environment={}), {})
    folder = config.with_name("audit")
    log = AuditTrail(folder, fsync="never", rotate_bytes=1 << 20, key=chain_key(None))
    source = load_data(images, preprocessing=Preprocessing(channels=1, image_size=(8, 8)))
    for item in source:
        assert item.image is not None
        outcomes = judged(opened.guard(item.image[None]))
        log.append(
            audit_lines(
                Call(f"r{item.index}", "POST /predict", "127.0.0.1"),
                opened,
                outcomes,
                hashes=[image_digest(item.image, b"").hex()],
                near=[],
                policy=PolicySection(),
                key=b"",
            )
        )
    log.close()
    return folder


class TestServe:
    def test_the_defaults_are_toml(self, run: Run) -> None:
        done = run("serve", "--defaults")
        assert done.code == 0
        assert tomllib.loads(done.out)["server"]["port"] == 8000

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (("--set", "sever.port=1"), "nearest known one is 'server'"),
            (("--port", "99999"), "at most 65535"),
            (("--set", "server.port"), "expected section.name=value"),
        ],
    )
    def test_a_wrong_setting_is_a_usage_error(
        self, run: Run, flags: tuple[str, ...], words: str
    ) -> None:
        pytest.importorskip("fastapi")
        done = run("serve", *flags)
        assert done.code == 2
        assert words in done.err

    def test_the_demo_takes_no_settings_file(self, run: Run, config: Path) -> None:
        pytest.importorskip("fastapi")
        assert run("serve", "--demo", "--config", config).code == 2

    @pytest.mark.parametrize("flags", [(), ("--json",)])
    def test_the_demo_tells_the_address_that_it_has(self, flags: tuple[str, ...]) -> None:
        pytest.importorskip("uvicorn")
        httpx = pytest.importorskip("httpx")
        command = [sys.executable, "-m", "lrpguard", "serve", "--demo", "--port", "0", *flags]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                assert process.stdout is not None
                told = process.stdout.readline()
                url = json.loads(told)["url"] if flags else told.split()[1].removesuffix("/")
                wait_until(lambda: httpx.get(f"{url}/v2/health/live").status_code == 200, 60)
                process.terminate()
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
        assert (process.returncode, out) == (0, "")
        words = f"open {url}/ in a browser"
        assert words in (err if flags else told)


class TestSelftest:
    def test_it_is_stored_where_the_settings_say(
        self, run: Run, config: Path, images: Path
    ) -> None:
        done = run("selftest", "--config", config, "--data", images, "--json")
        assert done.code == 0, done.err
        told = json.loads(done.out)
        stored = SelfTest.load(config.with_name("test.safetensors"))
        assert (told["score"], told["label"]) == (stored.score, stored.label)
        opened = open_guard(load_config(config, environment={}), {})
        assert stored.check(opened.guard, key=None) == 0

    def test_its_default_place_is_beside_the_calibration(self) -> None:
        assert selftest_beside(Path("a/guard.safetensors")) == Path("a/guard.selftest.safetensors")


class TestAudit:
    def test_a_whole_trail_verifies(self, run: Run, trail: Path) -> None:
        done = run("audit", "verify", trail, "--json")
        assert done.code == 0, done.err
        told = json.loads(done.out)
        assert told["lines"] == 40
        assert run("audit", "verify", trail, "--head", told["head"]).code == 0
        assert run("audit", "verify", trail, "--head", "0" * 64).code == 1

    @pytest.mark.parametrize("flags", [(), ("--json",)])
    def test_a_folder_without_a_trail_is_not_whole(
        self, run: Run, tmp_path: Path, flags: tuple[str, ...]
    ) -> None:
        done = run("audit", "verify", tmp_path, *flags)
        assert (done.code, done.out) == (1, "")
        assert f"holds no {file_name(1)}" in done.err

    def test_a_fresh_trail_is_whole(self, run: Run, tmp_path: Path) -> None:
        AuditTrail(tmp_path, fsync="never", rotate_bytes=1 << 20, key=b"").close()
        assert json.loads(run("audit", "verify", tmp_path, "--json").out)["lines"] == 0

    def test_a_removed_line_is_named(self, run: Run, trail: Path) -> None:
        file = trail / file_name(1)
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:5] + lines[6:]))
        done = run("audit", "verify", trail)
        assert done.code == 1
        assert "line 6: it is line 7" in done.err

    def test_replay_reproduces_every_score(
        self, run: Run, config: Path, trail: Path, images: Path
    ) -> None:
        done = run("audit", "replay", trail, "--config", config, "--data", images)
        assert done.code == 0, done.err
        assert "replayed   40 of 40 verdicts; 0 differ" in done.out

    def test_replay_finds_a_score_that_is_another(
        self, run: Run, config: Path, trail: Path, images: Path
    ) -> None:
        folder = trail.with_name("forged")
        log = AuditTrail(folder, fsync="never", rotate_bytes=1 << 20, key=b"")
        for line in (trail / file_name(1)).read_text().splitlines()[:3]:
            record = json.loads(line)
            del record["hash"]  # the chain of the forged trail is its own
            log.append([record | {"score": record["score"] + 1e-9}])
        log.close()
        done = run("audit", "replay", folder, "--config", config, "--data", images)
        assert done.code == 1
        assert "3 differ" in done.out
        loose = ("--tolerance", "1e-6")
        assert (
            run("audit", "replay", folder, "--config", config, "--data", images, *loose).code == 0
        )

    def recalibrated(self, trail: Path, first: int, last: int) -> Path:
        """Return a copy of the trail in which some lines are of a later calibration."""
        folder = trail.with_name("recalibrated")
        log = AuditTrail(folder, fsync="never", rotate_bytes=1 << 20, key=b"")
        for number, line in enumerate((trail / file_name(1)).read_text().splitlines()):
            record = json.loads(line)
            del record["hash"]
            other = {"calibration": "4669", "score": 0.5} if first <= number < last else {}
            log.append([record | other])
        log.close()
        return folder

    def test_replay_goes_over_the_lines_of_another_calibration(
        self, run: Run, config: Path, trail: Path, images: Path
    ) -> None:
        flags = ("--config", config, "--data", images)
        folder = self.recalibrated(trail, 0, 2)
        done = run("audit", "replay", folder, *flags)
        assert done.code == 0, done.err
        assert "2 line(s) are of calibration 4669, not replayed" in done.out
        assert "replayed   38 of 40 verdicts; 0 differ" in done.out
        told = [
            json.loads(t) for t in run("audit", "replay", folder, *flags, "--json").out.splitlines()
        ]
        assert told[0] == {"not_replayed": 2, "calibration": "4669"}
        assert [line["seq"] for line in told[1:]] == list(range(3, 41))

    def test_replay_of_other_guards_lines_alone_is_an_error(
        self, run: Run, config: Path, trail: Path, images: Path
    ) -> None:
        folder = self.recalibrated(trail, 0, 40)
        done = run("audit", "replay", folder, "--config", config, "--data", images)
        assert done.code == 1
        assert "none of the 40 verdicts is this guard's" in done.err
        assert "calibration 4669" in done.err

    def test_replay_without_the_images_says_so(
        self, run: Run, config: Path, trail: Path, clean_folder: Path
    ) -> None:
        done = run("audit", "replay", trail, "--config", config, "--data", clean_folder)
        assert done.code == 2
        assert "none of the 40 images" in done.err


class TestRecalibrate:
    def proposed(self, run: Run, trail: Path, calibration: Path) -> tuple[Path, dict[str, Any]]:
        out = trail.with_name("new.proposal")
        flags = ("--calibration", calibration, "--out", out, "--json")
        done = run("recalibrate", "propose", trail, *flags)
        assert done.code == 0, done.err
        return out, json.loads(done.out)

    def test_a_person_approves_and_the_guard_takes_it(
        self, run: Run, trail: Path, calibration: Path, tmp_path: Path
    ) -> None:
        proposal, told = self.proposed(run, trail, calibration)
        assert told["images"] == 40
        new = tmp_path / "new.safetensors"
        flags = ("--calibration", calibration, "--by", "Ada", "--exclude", "r3/0", "--out", new)
        done = run("recalibrate", "approve", proposal, *flags, "--confirm", told["digest"][:8])
        assert done.code == 0, done.err
        approved = Calibration.load(new)
        before = Calibration.load(calibration)
        assert approved.n == 39
        assert approved.smoothing == before.smoothing
        scores = Guard(load_digits_model(), calibration=new)
        assert scores.calibration is not None
        record = json.loads((tmp_path / "new.safetensors.approval.json").read_text())
        assert (record["by"], record["excluded"], record["images"]) == ("Ada", ["r3/0"], 39)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"--confirm": "00000000"}, "not approved"),
            ({"--by": " "}, "in a person's name"),
            ({"--exclude": "r99/0"}, "no candidate r99/0"),
        ],
    )
    def test_without_a_person_nothing_is_written(
        self,
        run: Run,
        trail: Path,
        calibration: Path,
        tmp_path: Path,
        changes: dict[str, str],
        words: str,
    ) -> None:
        proposal, told = self.proposed(run, trail, calibration)
        new = tmp_path / "new.safetensors"
        flags = {
            "--calibration": str(calibration),
            "--by": "Ada",
            "--out": str(new),
            "--confirm": told["digest"][:8],
        } | changes
        done = run("recalibrate", "approve", proposal, *[p for f in flags.items() for p in f])
        assert done.code == 2
        assert words in done.err
        assert not new.exists()

    def test_an_altered_proposal_is_refused(
        self, run: Run, trail: Path, calibration: Path, tmp_path: Path
    ) -> None:
        proposal, told = self.proposed(run, trail, calibration)
        content = json.loads(proposal.read_text())
        content["candidates"] = content["candidates"][:30]
        proposal.write_text(json.dumps(content))
        flags = ("--by", "Ada", "--calibration", calibration, "--out", tmp_path / "new.safetensors")
        done = run("recalibrate", "approve", proposal, *flags, "--confirm", told["digest"][:8])
        assert done.code == 2
        assert "altered" in done.err
