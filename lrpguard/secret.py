"""Where the secret noise key comes from. Imports no torch, so that --help is quick."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lrpguard.errors import ConfigurationError

KEY_VARIABLE = "LRPGUARD_KEY"


def secret_key(file: Path | None, environment: Mapping[str, str]) -> bytes | None:
    """Return the secret noise key: the bytes of a file, else the environment's, else None.

    Args:
        file: Key file, which is taken byte by byte as it is.
        environment: Where to look for ``LRPGUARD_KEY``, hexadecimal.

    Raises:
        ConfigurationError: The environment's key is not hexadecimal.
    """
    if file is not None:
        return file.read_bytes()
    text = environment.get(KEY_VARIABLE, "")
    if not text:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise ConfigurationError(
            f"the environment variable {KEY_VARIABLE} is not hexadecimal. Make one with: "
            "openssl rand -hex 32"
        ) from error
