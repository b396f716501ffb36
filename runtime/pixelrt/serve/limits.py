"""What of a request can be refused before its turn. No server in it: also for those that others run."""

from __future__ import annotations

from typing import Any

from pixelrt import query_json
from pixelrt.errors import InputError
from pixelrt.image import announced_size
from pixelrt.queries import KINDS, Query
from pixelrt.segmenter import Segmenter
from pixelrt.serve.settings import Settings

PLACES_MAX = 10_000  # of all points and scribbles of a question
REGION_PIXELS_MAX = 1 << 29  # every region becomes a mask of the picture's size, a byte a pixel


class TooManyPixels(InputError):
    """A picture above the limit of this server, not of pixelrt."""


def checked(
    segmenter: Segmenter, picture: bytes, entry: Any, settings: Settings, max_new_tokens: int
) -> tuple[str | Query, int]:
    """The query and the tokens of its words. picture: bytes of a file; entry: the query as JSON.

    Raises InputError, TooManyPixels.
    """
    if not picture:
        raise InputError("the picture is empty. Send the bytes of a PNG, JPEG, WebP or TIFF.")
    height, width = announced_size(picture)
    if height * width > settings.pixels:
        raise TooManyPixels(
            f"the picture has {width} x {height} pixels; {settings.pixels:,} are allowed. Scale it down."
        )
    _check_amount(entry, height * width, settings)
    query = query_json.from_json(entry, (height, width))
    ids = segmenter.check(query, None, max_new_tokens)
    return query, len(ids) - 1  # without the place of the picture


def _check_amount(entry: Any, pixels: int, limits: Settings) -> None:
    """Raises InputError where a question has more words, places or regions than are allowed."""
    given = entry if isinstance(entry, dict) else {}
    lists = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
    length = sum(
        len(part) for key in ("prompt", "classes") for part in lists.get(key, []) if isinstance(part, str)
    )
    if length > limits.prompt_chars:
        raise InputError(
            f"the prompt has {length:,} characters; {limits.prompt_chars:,} are allowed. Say it in fewer words."
        )
    touched = [item for key in ("points", "scribbles") for item in lists.get(key, [])]
    if any(isinstance(item, dict) for item in touched):
        raise InputError("points and scribbles are lists of x, y here. Give a mask under masks.")
    places = sum(len(item) for item in touched if isinstance(item, list))
    if places > PLACES_MAX:
        raise InputError(f"{places:,} places are marked; {PLACES_MAX:,} are allowed. Mark fewer.")
    regions = sum(len(lists.get(kind, [])) for kind in KINDS)
    if regions * pixels > REGION_PIXELS_MAX:
        raise InputError(
            f"{regions} regions of a picture of {pixels:,} pixels are too many at once. Scale it down, or mark fewer."
        )
