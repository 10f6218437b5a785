"""Near-duplicate requests of one client: what query attacks and resubmissions look like.

A guard that judges each request alone cannot see that a client asks a thousand times about almost
the same image. This monitor remembers a perceptual hash of each client's last images.

Source: Chen, Carlini, Wagner 2019, "Stateful detection of black-box adversarial attacks" (the
idea); the difference hash is Krawetz 2013.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional

_ROWS, _COLUMNS = 8, 9


def perceptual_hash(image: Tensor) -> int:
    """Return the 64-bit difference hash of an image: is each cell darker than its neighbour?

    Args:
        image: Pixels [C, H, W] in [0, 1].
    """
    grey = image.float().mean(0)[None, None]
    small = functional.interpolate(
        grey, (_ROWS, _COLUMNS), mode="bilinear", align_corners=False, antialias=True
    )[0, 0]
    bits = (small[:, :-1] < small[:, 1:]).flatten().tolist()
    return sum(1 << i for i, bit in enumerate(bits) if bit)


@dataclass
class QueryMonitor:
    """Counts near-duplicates among the last images of each client.

    Attributes:
        memory: Images of a client that are remembered.
        clients: Clients that are remembered; the one that was silent longest is forgotten.
        distance: Largest Hamming distance of hashes that is near.
        alert_after: Near-duplicates among the remembered images that are suspicious.
    """

    memory: int
    clients: int
    distance: int
    alert_after: int
    _hashes: OrderedDict[str, deque[int]] = field(default_factory=OrderedDict)

    def add(self, client: str, image: Tensor) -> int:
        """Remember an image [C, H, W]; return how many remembered ones are near it."""
        mine = perceptual_hash(image)
        known = self._hashes.setdefault(client, deque(maxlen=self.memory))
        self._hashes.move_to_end(client)
        if len(self._hashes) > self.clients:
            self._hashes.popitem(last=False)
        near = sum((mine ^ other).bit_count() <= self.distance for other in known)
        known.append(mine)
        return near

    def suspicious(self, near: int) -> bool:
        """Say whether that many near-duplicates are."""
        return near >= self.alert_after
