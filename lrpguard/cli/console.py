"""What a command prints where, and how its errors become exit codes."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec

import typer

from lrpguard.errors import ConfigurationError, LoadingError, LrpGuardError

if TYPE_CHECKING:
    from tqdm import tqdm

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_P = ParamSpec("_P")


@dataclass(frozen=True)
class Console:
    """Where a command's words go.

    Args:
        json: Whether stdout is for JSON alone.
        quiet: Whether nothing is said of progress.
    """

    json: bool
    quiet: bool = False

    def line(self, text: str) -> None:
        """Print a line of the result for people: on stdout, or nowhere under ``--json``."""
        if not self.json:
            self._print(text)

    def say(self, text: str) -> None:
        """Print a line for people in any case: on stdout, or on stderr under ``--json``."""
        self._print(text, err=self.json)

    def record(self, values: Mapping[str, Any]) -> None:
        """Print a record for programs, on one line of stdout: only under ``--json``."""
        if self.json:
            self._print(to_json(values))

    def note(self, text: str) -> None:
        """Print what is not part of the result, on stderr."""
        self._print(text, err=True)

    def step(self, text: str) -> None:
        """Print what is being done, on stderr, unless quiet."""
        if not self.quiet:
            self.note(f"... {text}")

    def bar(self, what: str, total: int, *, unit: str = "image") -> tqdm[Any]:
        """Return a progress bar with rate and time left, on stderr.

        It shows nothing when quiet, under ``--json``, and where nobody would see it.
        """
        from tqdm import tqdm

        hidden = self.quiet or self.json or not sys.stderr.isatty()
        return tqdm(desc=what, total=total, unit=unit, disable=hidden, leave=False)

    def _print(self, text: str, *, err: bool = False) -> None:
        """Print a line above the progress bar, where there is one."""
        if not self.quiet and "tqdm" in sys.modules:
            from tqdm import tqdm

            with tqdm.external_write_mode(file=sys.stderr if err else sys.stdout):
                typer.echo(text, err=err)
        else:
            typer.echo(text, err=err)


def to_json(values: Mapping[str, Any]) -> str:
    """Return one line of strict JSON; NaN and infinity, which it does not have, become null."""
    return json.dumps(_finite(values), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


def exit_code(error: Exception) -> int:
    """Return 2 where the options are at fault, 1 for any other failure."""
    return USAGE if isinstance(error, (ConfigurationError, LoadingError)) else FAILED


def describe(error: BaseException) -> str:
    """Return ``ClassName: message``."""
    return f"{type(error).__name__}: {error}"


def command(run: Callable[_P, int]) -> Callable[_P, None]:
    """Turn a function that returns an exit code into a command that ends with it.

    An error that lrpguard or the system raises on purpose is printed without a traceback.
    Any other is a bug, of lrpguard or of the model's code, and keeps its traceback.
    """

    @functools.wraps(run)
    def wrapped(*args: _P.args, **options: _P.kwargs) -> None:
        try:
            code = run(*args, **options)
            sys.stdout.flush()
        except LrpGuardError as error:
            typer.echo(f"error: {describe(error)}", err=True)
            code = exit_code(error)
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = FAILED
        except OSError as error:
            typer.echo(f"error: {describe(error)}", err=True)
            code = FAILED
        except KeyboardInterrupt:
            typer.echo("interrupted.", err=True)
            code = INTERRUPTED
        raise typer.Exit(code)

    return wrapped
