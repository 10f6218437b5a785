"""Settings from a TOML file, then the environment, then the command line."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from lrpguard.errors import ConfigurationError
from lrpguard.serving.config import ServiceConfig, Setting, sections, settings

PREFIX = "LRPGUARD_"
SEPARATOR = "__"
NOT_SETTINGS = ("LRPGUARD_KEY", "LRPGUARD_DATA", "LRPGUARD_CACHE")
"""Variables with our prefix that are no settings: secret key, tests' data, attacked images."""

_KUBERNETES = re.compile(
    r"LRPGUARD_(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=.*|PORT(_\d+_\w+)?=\w+://.*"
    r"|PORT_\d+_\w+=.*)"
)
"""What Kubernetes sets in each pod beside a service called lrpguard."""

Sources = dict[str, dict[str, tuple[Any, str, Path | None]]]
"""Value, where it was said, and the folder that its relative paths start from."""


def load_config(
    file: Path | None, *, environment: Mapping[str, str], assignments: Iterable[str] = ()
) -> ServiceConfig:
    """Return the settings.

    Args:
        file: TOML file; its relative paths start from its own folder. None takes the defaults.
        environment: Variables, of which ``LRPGUARD_SECTION__NAME`` is a setting.
        assignments: ``section.name=value``, which win over the others.

    Raises:
        ConfigurationError: The file cannot be read, a key is unknown (the nearest known one is
            named), or a value is of the wrong kind or out of its range.
    """
    said: Sources = {}
    if file is not None:
        _from_file(file, said)
    _from_environment(environment, said)
    _from_assignments(assignments, said)
    return replace(
        ServiceConfig(),
        **{name: _section(name, said[name]) for name in said},
    )


def _from_file(file: Path, said: Sources) -> None:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"the settings {file} cannot be read: {error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the settings {file} are no valid TOML: {error}.") from error
    for section, values in content.items():
        if not isinstance(values, dict):
            _check_known(section, sections(), f"the section of {file}")
            raise ConfigurationError(
                f"{section!r} in {file} is a value; expected a section: [{section}]."
            )
        for name, value in values.items():
            _say(said, section, name, (value, f"{file}", file.absolute().parent))


def _from_environment(environment: Mapping[str, str], said: Sources) -> None:
    for variable, value in environment.items():
        if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
            continue
        section, found, name = variable.removeprefix(PREFIX).lower().partition(SEPARATOR)
        if found:
            _say(said, section, name, (value, f"the environment variable {variable}", None))
        elif not _KUBERNETES.fullmatch(f"{variable}={value}"):
            known = [_variable(s, n) for s in sections() for n in settings(s)]
            _check_known(variable, [*known, *NOT_SETTINGS], "the environment variable")


def _from_assignments(assignments: Iterable[str], said: Sources) -> None:
    for text in assignments:
        key, equals, value = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot):
            raise ConfigurationError(
                f"--set is {text!r}; expected section.name=value, as in --set server.port=9000."
            )
        _say(said, section, name, (value.strip(), f"--set {key.strip()}", None))


def _say(said: Sources, section: str, name: str, value: tuple[Any, str, Path | None]) -> None:
    where = value[1]
    _check_known(section, sections(), f"the section in {where}")
    _check_known(name, settings(section), f"the key in {where}, section [{section}],")
    said.setdefault(section, {})[name] = value


def _check_known(name: str, known: Iterable[str], what: str) -> None:
    choices = list(known)
    if name in choices:
        return
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.0)
    raise ConfigurationError(
        f"{what} {name!r} is unknown. The nearest known one is {near[0]!r}; there are: "
        f"{', '.join(choices if len(choices) < 20 else near)}."
    )


def _section(name: str, said: Mapping[str, tuple[Any, str, Path | None]]) -> Any:
    values = {}
    known = settings(name)
    for key, (value, where, base) in said.items():
        hint, setting = known[key]
        values[key] = _checked(_converted(value, hint, key, where, base), setting, key, where)
    return sections()[name](**values)


def _variable(section: str, name: str) -> str:
    return f"{PREFIX}{section}{SEPARATOR}{name}".upper()


def _converted(value: Any, hint: Any, key: str, where: str, base: Path | None) -> Any:
    """Return a value in its setting's type; text, of variables and flags, is read."""
    if get_origin(hint) in (Union, types.UnionType):  # ... | None
        if base is None and value == "":
            return None
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    origin = get_origin(hint)
    if origin is Literal:
        if value in get_args(hint):
            return value
        choices = ", ".join(repr(choice) for choice in get_args(hint))
        raise ConfigurationError(f"{key} is {value!r} in {where}; there are {choices}.")
    if origin is tuple:
        parts = value.split(",") if base is None and isinstance(value, str) else value
        if isinstance(parts, list):
            return tuple(_converted(p, get_args(hint)[0], key, where, base) for p in parts)
    elif hint is Path and isinstance(value, str) and value:
        return Path(value).expanduser() if base is None else base / Path(value).expanduser()
    elif hint is str and isinstance(value, str) and value:
        return value
    else:
        number = _scalar(value, hint, is_text=base is None)
        if number is not None:
            return number
    wanted = "numbers" if origin is tuple else {Path: "a path", str: "text"}.get(hint, hint)
    name = wanted if isinstance(wanted, str) else wanted.__name__
    raise ConfigurationError(f"{key} is {value!r} in {where}; expected {name}.")


def _scalar(value: Any, hint: Any, *, is_text: bool) -> bool | int | float | None:
    if hint is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        read = words.get(str(value).lower()) if is_text else value
        return read if isinstance(read, bool) else None
    if isinstance(value, bool):
        return None
    try:
        if hint is int:
            return int(value) if is_text or isinstance(value, int) else None
        number = float(value) if is_text or isinstance(value, (int, float)) else math.nan
        return number if math.isfinite(number) else None
    except ValueError:
        return None


def _checked(value: Any, setting: Setting, key: str, where: str) -> Any:
    low, high = setting.minimum, setting.maximum
    if value is None or low is None:
        return value
    if value < low or (high is not None and value > high):
        limits = f"at least {low:g}" + ("" if high is None else f" and at most {high:g}")
        raise ConfigurationError(f"{key} is {value} in {where}; it must be {limits}.")
    return value
