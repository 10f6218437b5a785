"""What one SmoothLRP pass says about a batch of requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrpguard.errors import MissingDependencyError
from lrpguard.figures import png_bytes, request_figure
from lrpguard.notebook import html_picture, html_table, request_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Evidence:
    """Everything the N noisy copies of each request have shown.

    Relevance maps are summed over the channels, in units of the explained logit.

    Attributes:
        logits: Logits of the clean request [B, K].
        label: Explained class, the predicted one unless another was asked for [B].
        noisy_logits: Logits of the copies [B, N, K].
        relevance_mean: Mean over the copies of the relevance map [B, H, W].
        relevance_variance: Unbiased variance over the copies of the relevance map [B, H, W].
        relevance_total: Summed relevance of each copy [B, N].
        relevance_quantiles: Quantiles over the copies [B, Q, H, W], where asked for.
        view_logits: Logits of the changed views [B, V, K], where asked for.
        chroma_noise: Noise floor of the image's pixels, :func:`lrpguard.pixels.chroma_noise` [B].
        line_noise: The same along one axis, :func:`lrpguard.pixels.line_noise` [B].
        place_roughness: Of its roughest place, :func:`lrpguard.pixels.place_roughness` [B].
        sigma: Standard deviation of the noise, on the [0, 1] pixel scale.
    """

    logits: Tensor
    label: Tensor
    noisy_logits: Tensor
    relevance_mean: Tensor
    relevance_variance: Tensor
    relevance_total: Tensor
    relevance_quantiles: Tensor | None
    view_logits: Tensor | None
    chroma_noise: Tensor
    line_noise: Tensor
    place_roughness: Tensor
    sigma: float

    def __len__(self) -> int:
        """Return the number of requests B."""
        return len(self.label)

    @property
    def n(self) -> int:
        """Number of noisy copies N of each request."""
        return self.noisy_logits.shape[1]

    @property
    def explained_logit(self) -> Tensor:
        """Clean logit of the explained class [B]."""
        return self.logits.gather(1, self.label[:, None]).squeeze(1)

    def plot(
        self,
        row: int = 0,
        *,
        image: Tensor | None = None,
        class_names: Sequence[str] | None = None,
    ) -> Figure:
        """Draw the maps of one request.

        Args:
            row: Which request, from 0; negative ones count from the end.
            image: Its pixels [C, H, W] in [0, 1], to stand beside the maps.
            class_names: Name of each class, for the title.

        Raises:
            MissingDependencyError: matplotlib is not installed (the ``plots`` extra).
            ConfigurationError: There is no such request, or the image has another shape.
        """
        row = request_row(row, len(self))
        label = int(self.label[row])
        name = str(label) if class_names is None else f"{label} {class_names[label]}"
        return request_figure(
            self.relevance_mean[row].cpu().numpy(),
            self.relevance_variance[row].cpu().numpy(),
            image=None if image is None else image.detach().cpu().float().numpy(),
            title=f"class {name}, logit {float(self.explained_logit[row]):.2f}\n"
            f"{self.n} copies, sigma {self.sigma:g}",
        )

    def _repr_html_(self) -> str:
        """Show the requests in a notebook: a table, and the maps of the first."""
        kept = (self.noisy_logits.argmax(2) == self.label[:, None]).double().mean(1)
        rows = [
            [
                str(i),
                str(int(self.label[i])),
                f"{float(self.explained_logit[i]):.3g}",
                f"{100 * float(kept[i]):.0f} %",
                f"{float(self.relevance_mean[i].double().sum()):.3g}",
                f"{float(self.relevance_variance[i].double().mean()):.3g}",
            ]
            for i in range(len(self))
        ]
        heads = ("request", "class", "logit", "copies that keep it", "relevance, sum", "variance")
        table = html_table(heads, rows, caption=f"SmoothLRP: {self.n} copies, sigma {self.sigma:g}")
        try:
            return table + html_picture(png_bytes(self.plot()), alt="maps of request 0")
        except MissingDependencyError:
            return table

    def select(self, rows: Tensor | slice) -> Evidence:
        """Return the evidence of some of the requests, by index [R] or slice."""
        return self._map(lambda tensors: tensors[0][rows])

    @staticmethod
    def concatenate(parts: list[Evidence]) -> Evidence:
        """Join the evidence of several batches of equally sized requests, in order."""
        return parts[0]._map(torch.cat, parts)

    def _map(
        self, join: Callable[[list[Tensor]], Tensor], parts: list[Evidence] | None = None
    ) -> Evidence:
        """Apply a function to each tensor of all parts; what a part lacks stays None."""
        parts = [self] if parts is None else parts
        joined: dict[str, Any] = {}
        for field in fields(self):
            values = [getattr(part, field.name) for part in parts]
            tensors = [value for value in values if isinstance(value, Tensor)]
            joined[field.name] = join(tensors) if tensors else values[0]
        return Evidence(**joined)
