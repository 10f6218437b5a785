"""The page for people, with headers under which it runs its own code and no other."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import re
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        content: HTML.
        headers: Headers to send with it.
    """

    content: str
    headers: dict[str, str]


@functools.cache
def page(*, scores: bool, model: str) -> Page:
    """Return the page.

    Args:
        scores: Whether p-values and maps may be shown.
        model: Name of the model.
    """
    text = resources.files("lrpguard.serving").joinpath("page.html").read_text("utf-8")
    text = text.replace("{{scores}}", str(scores).lower()).replace("{{model}}", html.escape(model))
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hashes(text, 'script')}",
            f"style-src {_hashes(text, 'style')}",
            "img-src 'self' data: blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
    return Page(
        text,
        {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )


def _hashes(text: str, tag: str) -> str:
    """Return the hashes of what stands in each tag of that name, as a policy lists them."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
    digests = (hashlib.sha256(content.encode()).digest() for content in found)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
