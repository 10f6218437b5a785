"""A request that gets no answer, and why: what the client may know, and no more."""

from __future__ import annotations

from lrpguard.errors import InputError, LrpGuardError


class RefusedError(Exception):
    """A request is refused.

    Attributes:
        status: HTTP status.
        code: Short name of the reason, for programs and metrics.
        message: The reason, for people; it holds nothing of the server's inside.
        retry_after: Seconds after which to try again, where that may help.
    """

    def __init__(
        self, status: int, code: str, message: str, *, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after


def bad_request(error: LrpGuardError | str) -> RefusedError:
    """Return the refusal of an input, with what is wrong with it."""
    return RefusedError(400, "bad_input", str(error))


def of_error(error: BaseException) -> RefusedError:
    """Return the refusal of any error: what the input did is told, what the server did is not."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, InputError):
        return bad_request(error)
    return RefusedError(
        500, "guard_failure", "the guard failed, and answers are refused without it (fail_closed)."
    )


def overloaded(retry_after: int) -> RefusedError:
    """Return the refusal of a request that comes while there are too many."""
    return RefusedError(
        429,
        "overload",
        f"too many requests are waiting; try again in {retry_after} s.",
        retry_after=retry_after,
    )


def too_late() -> RefusedError:
    """Return the refusal of a request that could not be judged by its deadline."""
    return RefusedError(504, "deadline", "the request could not be judged within its deadline.")
