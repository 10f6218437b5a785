"""Settings: file, environment, flags; unknown keys name the nearest known one."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from lrpguard.errors import ConfigurationError
from lrpguard.serving.config import ServiceConfig, defaults_toml
from lrpguard.serving.configure import load_config


def write(folder: Path, text: str) -> Path:
    file = folder / "guard.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_later_sources_win(tmp_path: Path) -> None:
    file = write(tmp_path, "[server]\nport = 1\nhost = 'a'\nworkers = 3\n")
    variables = {"LRPGUARD_SERVER__PORT": "2", "LRPGUARD_SERVER__HOST": "b"}
    found = load_config(file, environment=variables, assignments=["server.port=4"]).server
    assert (found.port, found.host, found.workers) == (4, "b", 3)


def test_without_any_source_the_defaults_stand() -> None:
    assert load_config(None, environment={}) == ServiceConfig()


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "[model]\nmean = [0.5, 1]\nimage_size = [8, 8]\nweights = 'w.pth'\n"
        "[policy]\nshadow = true\non_flag = 'reject'\n[limits]\nbody_seconds = 2\n",
    )
    found = load_config(file, environment={})
    assert found.model.mean == (0.5, 1.0)
    assert found.model.image_size == (8, 8)
    assert found.model.weights == tmp_path / "w.pth"
    assert found.policy.shadow is True
    assert found.policy.on_flag == "reject"
    assert found.limits.body_seconds == 2.0


def test_text_of_variables_is_read_and_its_paths_start_here() -> None:
    variables = {
        "LRPGUARD_MODEL__MEAN": "0.5,0.25",
        "LRPGUARD_MODEL__WEIGHTS": "w.pth",
        "LRPGUARD_POLICY__SHADOW": "TRUE",
        "LRPGUARD_AUDIT__FOLDER": "",
        "LRPGUARD_KEY": "00ff",
        "LRPGUARD_DATA": "/data",
        "HOME": "/root",
    }
    found = load_config(None, environment=variables)
    assert found.model.mean == (0.5, 0.25)
    assert found.model.weights == Path("w.pth")
    assert found.policy.shadow is True
    assert found.audit.folder is None


def test_the_variables_that_kubernetes_sets_are_no_settings() -> None:
    variables = {
        "LRPGUARD_PORT": "tcp://10.0.0.1:80",
        "LRPGUARD_PORT_80_TCP_ADDR": "10.0.0.1",
        "LRPGUARD_SERVICE_HOST": "10.0.0.1",
        "LRPGUARD_SERVICE_PORT_HTTP": "80",
        "LRPGUARD_DEMO_SERVICE_HOST": "10.0.0.1",
    }
    assert load_config(None, environment=variables) == ServiceConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[sever]\nport = 1", "'sever' is unknown. The nearest known one is 'server'"),
        ("[server]\nprot = 1", "'prot' is unknown. The nearest known one is 'port'"),
        ("port = 1", "'port' is unknown"),
        ("server = 1", "expected a section: [server]"),
        ("[server]\nport = 'x'", "port is 'x'"),
        ("[server]\nport = true", "port is True"),
        ("[server]\nport = 70000", "at most 65535"),
        ("[server]\nworkers = 0", "at least 1"),
        ("[policy]\non_flag = 'ignore'", "there are 'annotate', 'restore', 'reject'"),
        ("[policy]\nshadow = 'yes'", "expected bool"),
        ("[model]\nmean = 'a,b'", "expected numbers"),
        ("[limits]\nbody_seconds = nan", "expected float"),
        ("[server", "no valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(write(tmp_path, text), environment={})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("LRPGUARD_SERVER__PROT", "'prot' is unknown. The nearest known one is 'port'"),
        ("LRPGUARD_SERVER_PORT", "LRPGUARD_SERVER__PORT"),
        ("LRPGUARD_KEYS", "LRPGUARD_KEY"),
    ],
)
def test_an_unknown_variable_is_an_error(variable: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(None, environment={variable: "1"})
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["server.port", "port=1", "=", "server.=1", "server.port=x"])
def test_a_wrong_assignment_is_an_error(text: str) -> None:
    with pytest.raises(ConfigurationError):
        load_config(None, environment={}, assignments=[text])


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_config(tmp_path / "none.toml", environment={})


def test_the_printed_defaults_are_a_file_that_gives_the_defaults(tmp_path: Path) -> None:
    text = defaults_toml()
    assert set(tomllib.loads(text)) == set(ServiceConfig.__dataclass_fields__)
    assert load_config(write(tmp_path, text), environment={}) == ServiceConfig()
