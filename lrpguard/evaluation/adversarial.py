"""Attacked images, made chunk by chunk and kept outside the repository."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lrpguard.attacks import Attack, quantize
from lrpguard.errors import EvaluationError
from lrpguard.evaluation.protocol import ImageSet
from lrpguard.fingerprint import model_fingerprint

CACHE_VARIABLE = "LRPGUARD_CACHE"
"""Environment variable that names the folder of stored attacked images."""

CHUNK_VALUES = 2**21
"""Values of the images attacked together: 13 images of 3 x 224 x 224."""

MAX_CHUNK = 64
MIN_CHUNK = 4
"""Fewest and most images attacked together, whatever their size."""

_RECORD = "lrpguard"


@dataclass(frozen=True)
class AttackedSet:
    """What an attack made of a set of images.

    Attributes:
        attack: The attack.
        images: Attacked images of 8-bit levels, as uint8 [N, C, H, W].
        seconds: Time it took to make them.
    """

    attack: Attack
    images: Tensor
    seconds: float

    def pixels(self, start: int, end: int) -> Tensor:
        """Return images ``start`` … ``end - 1`` as float32 in [0, 1]."""
        return self.images[start:end].float().div(255)


def default_cache() -> Path:
    """Return the folder that the environment names, or one in the user's home."""
    folder = os.environ.get(CACHE_VARIABLE)
    return Path(folder) if folder else Path.home() / ".cache" / "lrpguard"


def chunk_length(shape: Sequence[int]) -> int:
    """Return how many images of (C, H, W) are attacked together; the same on every machine."""
    values = max(1, int(torch.Size(shape).numel()))
    return min(MAX_CHUNK, max(MIN_CHUNK, CHUNK_VALUES // values))


def attacked_set(
    attack: Attack,
    model: nn.Module,
    images: ImageSet,
    *,
    seed: int,
    cache: Path | None,
    on_chunk: Callable[[int], None] = lambda count: None,
    clock: Callable[[], float],
) -> AttackedSet:
    """Attack images, or read what was made of them before.

    Images are attacked in chunks of a fixed length, in the order of the set. Each chunk has a
    random seed of its own, which follows from ``seed``, the attack and the images of the chunk:
    what becomes of an image depends on no others than those of its chunk. A chunk is stored as it
    is done, so an interruption costs one chunk. Once all are done they become one file, and files
    are trusted only where they match their own digest.

    Args:
        attack: The attack.
        model: From images [B, C, H, W] in [0, 1] to logits, in eval mode.
        images: What to attack.
        seed: Seed of the attack's randomness.
        cache: Folder of stored images; None stores nothing.
        on_chunk: Told how many images more are done.
        clock: Seconds, for what it took.

    Raises:
        EvaluationError: The attack left its ball or [0, 1], or lost images.
    """
    key = _key(attack, model, images, seed)
    whole = None if cache is None else cache / f"{attack.name}-{_short(key)}.safetensors"
    stored = None if whole is None else _read(whole, key)
    if stored is not None:
        on_chunk(len(images))
        return AttackedSet(attack, *stored)
    length = chunk_length(images.images.shape[1:])
    done: list[tuple[Tensor, float]] = []
    parts: list[Path] = []
    for start in range(0, len(images), length):
        part = images.part(start, min(start + length, len(images)))
        part_key = _key(attack, model, part, seed) | {"part": start}
        path = None if whole is None else whole.with_name(f"{whole.stem}.{start:06d}.part")
        found = None if path is None else _read(path, part_key)
        if found is None:
            begun = clock()
            made = _attack_chunk(attack, model, part, seed)
            found = (made, clock() - begun)
            if path is not None:
                _write(path, part_key, *found)
        parts += [] if path is None else [path]
        done.append(found)
        on_chunk(len(part))
    every = torch.cat([made for made, _ in done])
    seconds = sum(took for _, took in done)
    if whole is not None:
        _write(whole, key, every, seconds)
        for path in parts:
            path.unlink(missing_ok=True)
    return AttackedSet(attack, every, seconds)


def _attack_chunk(attack: Attack, model: nn.Module, part: ImageSet, seed: int) -> Tensor:
    """Return one chunk attacked, as uint8, after having looked at it."""
    reference = next(model.parameters(), torch.empty(0))
    clean = part.pixels()
    on_device = clean.to(reference.device, reference.dtype)
    labels = part.labels.to(reference.device)
    attacked = attack.run(model, on_device, labels, _chunk_seed(attack, part, seed))
    if attacked.shape != clean.shape:
        raise EvaluationError(
            f"{attack.name} made {list(attacked.shape)} of images {list(clean.shape)}; an attack "
            "returns one image for each."
        )
    rounded = quantize(attacked.detach().float().cpu())
    excess = attack.excess(clean, rounded)
    if bool((excess > 0).any()):
        worst = int(excess.argmax())
        raise EvaluationError(
            f"{attack.name} left its ball of radius {attack.radius(clean):.4g} ({attack.norm}) by "
            f"{float(excess[worst]):.4g} at image {part.digests[worst]}; its result counts for "
            "nothing. Mend the attack."
        )
    return rounded.mul(255).round().to(torch.uint8)


def _chunk_seed(attack: Attack, part: ImageSet, seed: int) -> int:
    text = json.dumps([seed, attack.parameters(), part.digest], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _key(attack: Attack, model: nn.Module, images: ImageSet, seed: int) -> dict[str, Any]:
    """Return all that the attacked images depend on."""
    key = {
        "attack": attack.parameters(),
        "model": model_fingerprint(model),
        "data": images.digest,
        "seed": seed,
        "chunk": chunk_length(images.images.shape[1:]),
    }
    if attack.options.get("by") == "torchattacks":
        key["torchattacks"] = version("torchattacks")
    return key


def _short(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]


def _content_digest(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


def _write(path: Path, key: dict[str, Any], images: Tensor, seconds: float) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"key": key, "digest": _content_digest(images), "seconds": seconds}
    partial = path.with_name(f"{path.name}.{os.getpid()}.writing")
    save_file({"images": images.contiguous()}, str(partial), metadata={_RECORD: json.dumps(record)})
    os.replace(partial, path)


def _read(path: Path, key: dict[str, Any]) -> tuple[Tensor, float] | None:
    """Return what a file holds; None where it is not there, damaged, or of something else."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            record = json.loads((file.metadata() or {})[_RECORD])
            images: Tensor = file.get_tensor("images")
        whole = record["key"] == key and record["digest"] == _content_digest(images)
        return (images, float(record["seconds"])) if whole else None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
