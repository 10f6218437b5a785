"""Any attack of torchattacks, by name, on our terms: seeded, and leaving the model alone."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrpguard.attacks.pgd import check_labels
from lrpguard.errors import ConfigurationError, MissingDependencyError
from lrpguard.inputs import check_images

_WRAPPERS = ("MultiAttack", "LGV")


def torchattacks_attack(
    name: str, model: nn.Module, *, seed: int = 0, **options: Any
) -> Callable[[Tensor, Tensor], Tensor]:
    """Build an attack of torchattacks.

    Args:
        name: Class in ``torchattacks``, e.g. ``"PGD"``, ``"CW"``, ``"AutoAttack"``.
        model: From images [B, C, H, W] in [0, 1] to logits [B, K].
        seed: Seed of the attack's randomness. torchattacks draws from the global
            generators of torch and NumPy; they are seeded for each call, and put back after it.
        options: Arguments of that class, e.g. ``eps=8/255, steps=10``.

    Returns:
        A function from images [B, C, H, W] in [0, 1] and labels [B] to adversarial images
        [B, C, H, W] in [0, 1]. Pixels outside [0, 1] by rounding, which torchattacks does not
        bear, are clipped first. Mode, ``requires_grad`` and ``grad`` of the model are put back
        whatever happens.

    Raises:
        MissingDependencyError: torchattacks is not installed.
        ConfigurationError: There is no such attack, or it does not take the options.
    """
    attack_class = _attack_class(name)
    if "seed" in inspect.signature(attack_class).parameters:
        options["seed"] = seed
    with _left_alone(model):
        try:
            attack = attack_class(model, **options)
        except TypeError as error:
            raise ConfigurationError(
                f"torchattacks.{name} does not take these options ({error}); it takes "
                f"{inspect.signature(attack_class)}."
            ) from error

    def run(images: Tensor, labels: Tensor) -> Tensor:
        """Return adversarial images for images [B, C, H, W] and labels [B]."""
        with (
            _left_alone(model),
            _seeded(seed, images.device),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            clean = check_images(images).clone()
            attack.set_device(clean.device)
            adversarial: Tensor = attack(clean, check_labels(labels, clean))
            return adversarial.detach().to(images.device, images.dtype).clamp(0, 1)

    return run


def _attack_class(name: str) -> Any:
    try:
        library: Any = importlib.import_module("torchattacks")
    except ImportError as error:
        raise MissingDependencyError(
            "attacks by name need torchattacks, which is not installed: "
            "pip install 'lrpguard[attacks]'."
        ) from error
    known = [
        key
        for key, value in vars(library).items()
        if inspect.isclass(value) and issubclass(value, library.attack.Attack)
    ]
    names = sorted(key for key in known if key not in (*_WRAPPERS, "Attack"))
    if name not in names:
        raise ConfigurationError(
            f"torchattacks has no attack {name!r} on one model; it has {', '.join(names)}."
        )
    return getattr(library, name)


@contextmanager
def _left_alone(model: nn.Module) -> Iterator[None]:
    """Put back each module's mode, and each parameter's requires_grad and grad."""
    modes = [(module, module.training) for module in model.modules()]
    parameters = [
        (p, p.requires_grad, p.grad, None if p.grad is None else p.grad.clone())
        for p in model.parameters()
    ]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, gradient, value in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
            if gradient is not None and value is not None:
                gradient.copy_(value)  # backward() adds to it in place


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators that torchattacks draws from, for a while."""
    on_gpu = device.type == "cuda"
    numpy_state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if on_gpu else []):
            # Not torch.manual_seed, which also seeds every other device.
            torch.default_generator.manual_seed(seed)
            if on_gpu:
                torch.cuda.default_generators[device.index].manual_seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        np.random.set_state(numpy_state)
