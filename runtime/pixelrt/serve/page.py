"""The page at /: one file with its style and script inside. Nothing else may run in it, or be asked by it."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from fastapi.responses import Response


def page() -> Response:
    text = resources.files("pixelrt.serve").joinpath("page.html").read_text(encoding="utf-8")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashes(text, 'script')}",
            f"style-src {_hashes(text, 'style')}",
            "img-src 'self' data: blob:",
            "media-src blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Permissions-Policy": "camera=(self)",
        "Cache-Control": "no-cache",
    }
    return Response(text, media_type="text/html; charset=utf-8", headers=headers)


def _hashes(text: str, tag: str) -> str:
    """A browser runs an inline block whose hash it was told, and no other."""
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return " ".join(
        "'sha256-" + base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() + "'"
        for block in blocks
    )
