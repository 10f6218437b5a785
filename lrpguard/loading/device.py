"""A device by its name."""

from __future__ import annotations

import torch

from lrpguard.errors import ConfigurationError


def find_device(name: str | None, *, option: str = "--device") -> torch.device:
    """Return the device of that name, or by default a GPU if there is one.

    Args:
        name: cpu, cuda, cuda:0 and so on; None chooses.
        option: What to call it in an error.

    Raises:
        ConfigurationError: There is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(
            f"{option} is {name!r}; expected cpu, cuda, or cuda:0 and so on."
        ) from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            f"{option} is {name!r}, but torch {torch.__version__} sees no GPU here. Leave it out, "
            "or install a torch built for your GPU and its driver."
        )
    return found
