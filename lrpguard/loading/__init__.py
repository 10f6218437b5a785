"""Models and images from the outside: what ``--model``, ``--weights`` and ``--data`` name."""

from lrpguard.loading.data import ImageItem, ImageSource, batches, load_data
from lrpguard.loading.device import find_device
from lrpguard.loading.models import LoadedModel, load_model
from lrpguard.loading.preprocessing import IMAGE_SUFFIXES, Preprocessing

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageItem",
    "ImageSource",
    "LoadedModel",
    "Preprocessing",
    "batches",
    "find_device",
    "load_data",
    "load_model",
]
