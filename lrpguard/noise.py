"""Keyed noise: a function of the image, the key and the copy's number alone."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import torch
from torch import Tensor

from lrpguard.errors import ConfigurationError

MAX_KEY_BYTES = 64
"""Longest key that BLAKE2b takes."""


def key_bytes(seed: int, key: bytes | None = None) -> bytes:
    """Return the noise key: the secret one, or one made from a public seed.

    Args:
        seed: Public seed, a 64-bit unsigned integer, used where there is no secret key.
        key: Secret key, 16 to 64 bytes.

    Raises:
        ConfigurationError: The seed or the key is out of its range.
    """
    if key is None:
        if not 0 <= seed < 2**64:
            raise ConfigurationError(f"seed is {seed}; it must be in 0 … 2**64 - 1.")
        return b"lrpguard" + struct.pack("<Q", seed)
    if not isinstance(key, bytes):
        raise ConfigurationError(
            f"the secret key is a {type(key).__name__}; give bytes, e.g. bytes.fromhex(text)."
        )
    if not 16 <= len(key) <= MAX_KEY_BYTES:
        raise ConfigurationError(
            f"the secret key has {len(key)} bytes; give 16 to {MAX_KEY_BYTES}, for instance "
            "secrets.token_bytes(32)."
        )
    return key


def image_digest(image: Tensor, key: bytes) -> bytes:
    """Return the keyed BLAKE2b digest (16 bytes) of an image's content.

    Args:
        image: Pixels [C, H, W]; a half-precision image equals its float32 copy.
        key: Noise key of :func:`key_bytes`; ``b""`` gives a public digest.
    """
    pixels = image.detach().to("cpu", torch.float32).contiguous() + 0.0  # -0.0 is 0.0
    state = hashlib.blake2b(struct.pack("<3q", *pixels.shape), digest_size=16, key=key)
    state.update(pixels.numpy().tobytes())
    return state.digest()


def gaussian_copies(digest: bytes, first: int, count: int, shape: torch.Size) -> Tensor:
    """Return standard normal noise for copies ``first`` … ``first + count - 1`` of an image.

    Each copy has its own counter range of a Philox generator keyed by the digest, so the
    noise of a copy does not depend on how the copies are divided into chunks.

    Args:
        digest: Keyed digest of the image, 16 bytes.
        first: Number of the first copy.
        count: How many copies.
        shape: Shape of the image [C, H, W].

    Returns:
        float32 noise [count, C, H, W] on the CPU.

    Source: Salmon et al. 2011 (Philox).
    """
    key = np.frombuffer(digest, dtype=np.uint64)
    noise = np.empty((count, *shape), dtype=np.float32)
    for i in range(count):
        counter = np.array([0, 0, 0, first + i], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(counter=counter, key=key))
        generator.standard_normal(out=noise[i], dtype=np.float32)
    return torch.from_numpy(noise)
