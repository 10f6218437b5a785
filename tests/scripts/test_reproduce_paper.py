"""The script's own part: arguments, defaults and errors."""

from pathlib import Path
from types import ModuleType

import pytest

from scripts import reproduce_paper


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return reproduce_paper


def test_command_of_a_card_names_no_folder(script: ModuleType) -> None:
    command = script.portable(
        ["--model", "resnet20", "--cifar", "/far/away/test.npz", "--rows", "/far/r", "--stop-early"]
    )

    assert "/far" not in " ".join(command)
    assert script.parse(command).cifar == Path("test.npz")
    assert script.parse(command).stop_early


def test_default_is_the_papers_network(script: ModuleType) -> None:
    assert script.parse([]).model == "vgg16"


def test_without_data_the_error_says_what_to_give(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("LRPGUARD_DATA", raising=False)

    code = script.main(["--model", "resnet20", "--docs", str(tmp_path)])

    assert code == 1
    assert "LoadingError: --weights is not given" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_vgg16_that_cannot_be_downloaded_is_a_clear_error(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    # Nothing listens on port 9 of this host: the download fails, with or without a network.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    code = script.main(["--images", str(tmp_path), "--docs", str(tmp_path)])

    assert code == 1
    message = capsys.readouterr().err
    assert "LoadingError: the weights of torchvision:vgg16@IMAGENET1K_V1 could not" in message
    assert "--weights FILE" in message


def test_tables_need_no_model(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(["--tables", "--docs", str(tmp_path)]) == 0
    assert "84.3 % (79.8-88.0), 253/300" in (tmp_path / "reproduction.md").read_text()
