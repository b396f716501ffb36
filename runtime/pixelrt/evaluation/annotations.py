"""What annotation files of all datasets have in common: JSON, pictures of a stated size, masks as polygons or RLE."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixelrt.errors import InputError
from pixelrt.evaluation import coco_api
from pixelrt.evaluation.measures import Bits, Labels
from pixelrt.image import Rgb, open_image
from pixelrt.manifest import check as check_form

ADVICE = "Download the annotations again."


def file_sha256(file: Path, what: str) -> str:
    """SHA-256 of a file that must be there; `what` it is, for the sentence where it is not."""
    if not file.is_file():
        raise InputError(f"{file} is missing. It is {what}; docs/evaluation.md shows the folders.")
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_json(file: Path, what: str) -> Any:
    if not file.is_file():
        raise InputError(f"{file} is missing. It is {what}; docs/evaluation.md shows the folders.")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON ({error}). {ADVICE}") from None


def checked(document: Any, form: Any, where: str) -> Any:
    """`document` itself. Raises InputError unless it has the form (see pixelrt.manifest)."""
    try:
        check_form(document, form, where)
    except InputError as error:
        raise InputError(str(error).replace("Copy or export the bundle again.", ADVICE)) from None
    return document


def by_id(entries: Iterable[Mapping[str, Any]], file: Path, what: str) -> dict[int, Any]:
    """Entries by their `id`, which must be unique."""
    found: dict[int, Any] = {}
    for entry in entries:
        if type(entry["id"]) is not int:
            raise InputError(f"{file} has {what} with the id {entry['id']!r:.40}, not a number. {ADVICE}")
        if entry["id"] in found:
            raise InputError(f"{file} has two {what} with id {entry['id']}. {ADVICE}")
        found[entry["id"]] = entry
    return found


def looked_up(table: Mapping[int, Any], number: int, who: str, what: str) -> Any:
    """table[number]; who refers to it, and to what."""
    if number not in table:
        raise InputError(f"{who} names {what} {number}, which the file does not list. {ADVICE}")
    return table[number]


def read_picture(file: Path, size: tuple[int, int], source: str) -> Rgb:
    """The picture, which must have the size (height, width) that `source` states."""
    if not file.is_file():
        raise InputError(
            f"{source} names the picture {file}, which is not there. Download it, or give --images."
        )
    picture = open_image(file)
    check_size(picture.shape[:2], size, file, source)
    return picture


def check_size(got: tuple[int, ...], wanted: tuple[int, int], file: Path, source: str) -> None:
    if tuple(got) != tuple(wanted):
        raise InputError(
            f"{file} has {got[0]} x {got[1]} pixels (rows x columns), but {source} says {wanted[0]} x {wanted[1]}. "
            "Pictures and annotations must be of one release."
        )


def read_labels(file: Path, size: tuple[int, int] | None, source: str) -> Labels:
    """The values of a PNG: indices where it has a palette, R + 256 G + 65536 B where it has colours (COCO panoptic)."""
    if not file.is_file():
        raise InputError(f"{source} names the label map {file}, which is not there. Download it.")
    try:
        with Image.open(file, formats=("PNG",)) as picture:
            values = np.asarray(picture if picture.mode in ("P", "L") else picture.convert("RGB")).astype(
                np.int32
            )
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise InputError(f"{file} is not a PNG that can be read. {ADVICE}") from None
    labels = values if values.ndim == 2 else values @ np.array([1, 256, 65536], np.int32)
    if size is not None:
        check_size(labels.shape, size, file, source)
    return labels


def read_mask(segmentation: Any, size: tuple[int, int], who: str) -> Bits:
    """COCO's `segmentation`: polygons, RLE, or a list of RLEs; several parts are joined. who: for the sentence."""
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    try:
        if not parts:
            return np.zeros(size, np.bool_)
        if all(isinstance(part, list) for part in parts):
            return coco_api.mask_of_polygons(parts, size)
        masks = [coco_api.mask_of_rle(part, size) for part in parts]
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{who} has no mask that can be read ({error}). {ADVICE}") from None
    for mask in masks:
        if mask.shape != size:
            raise InputError(
                f"{who} has a mask of {mask.shape}, its picture is {size} (rows, columns). {ADVICE}"
            )
    return np.asarray(np.any(masks, axis=0))
