"""One record an image of a source: what a guard says of it, or why it says nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrpguard.errors import (
    CalibrationMismatchError,
    InputError,
    ModelOutputError,
    NonFiniteScoreError,
)
from lrpguard.guard import Guard
from lrpguard.loading import ImageItem, ImageSource, LoadedModel, batches
from lrpguard.restoration import UNKNOWN

BROKEN = "broken"
"""Status of an image that has no verdict: it cannot be read, or the guard refused it."""

_OF_ONE_IMAGE = (InputError, CalibrationMismatchError, ModelOutputError, NonFiniteScoreError)
_OF_A_VERDICT = (
    *("class", "restored_class", "label", "confidence", "p_value", "score", "flagged"),
    *("restored_label", "restored_confidence", "copies"),
)


@dataclass(frozen=True, eq=False)
class Checker:
    """A guard that judges sources of images.

    Attributes:
        guard: The guard.
        loaded: Its model, with the names of the classes.
        batch_size: Images read and judged together; the verdicts do not depend on it.
    """

    guard: Guard
    loaded: LoadedModel
    batch_size: int

    def records(self, source: ImageSource) -> Iterator[dict[str, Any]]:
        """Yield the record of each image, in the order of the source.

        An image that cannot be read, or that the guard refuses, does not stop the others: its
        record has the status ``BROKEN`` and the error.

        Args:
            source: Images of the calibration's shape.
        """
        unread: list[ImageItem] = []
        for items, images in batches(source, self.batch_size, on_broken=unread.append):
            yield from _in_order(self._judge(items, images), unread)
        yield from _in_order((), unread)

    def _judge(self, items: Sequence[ImageItem], images: Tensor) -> Iterator[dict[str, Any]]:
        try:
            verdict = self.guard(images)
        except _OF_ONE_IMAGE as error:
            if len(items) == 1:
                yield _broken(items[0], f"{type(error).__name__}: {error}")
                return
            for item, image in zip(items, images, strict=True):
                yield from self._judge([item], image[None])
            return
        for item, outcome in zip(items, verdict.to_dicts(), strict=True):
            yield self._record(item, outcome, verdict.failure)

    def _record(
        self, item: ImageItem, outcome: dict[str, Any], failure: str | None
    ) -> dict[str, Any]:
        restored = outcome["restored_label"]
        return {
            "index": item.index,
            "name": item.name,
            "true_label": item.label,
            "class": self.loaded.class_name(outcome["label"]),
            "restored_class": self.loaded.class_name(restored),
            "error": failure,
            **outcome,
            "restored_label": None if restored == UNKNOWN else restored,
        }


def _in_order(
    records: Iterable[dict[str, Any]], unread: list[ImageItem]
) -> Iterator[dict[str, Any]]:
    """Yield records in the order of the source, with the unread images met so far among them."""
    for record in records:
        while unread and unread[0].index < record["index"]:
            item = unread.pop(0)
            yield _broken(item, str(item.error))
        yield record
    while unread:
        item = unread.pop(0)
        yield _broken(item, str(item.error))


def _broken(item: ImageItem, error: str) -> dict[str, Any]:
    return {
        "index": item.index,
        "name": item.name,
        "true_label": item.label,
        **dict.fromkeys(_OF_A_VERDICT),
        "error": error,
        "status": BROKEN,
    }
