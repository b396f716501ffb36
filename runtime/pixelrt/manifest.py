"""What a manifest must look like, and the sentence for one that does not.

A form is a type (`int` is a whole number from 0 up, never a bool), a set of allowed values, `[form]` for a list,
a tuple of forms for a list of that length, `Each(form)` for an object with any names, or an object of forms; a
name that ends in `?` may be left out. Names that no form mentions are let through: a newer exporter may write them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelrt.errors import InputError

FORMAT = 1
MANIFEST = "manifest.json"
LARGEST = 16 << 20  # bytes; a manifest of 80 layers has 0.1 MB
MOST = 1 << 31  # any size or id
WORDS = {str: "a string", int: "a whole number", dict: "an object", list: "a list"}


@dataclass(frozen=True)
class Each:
    """An object whose values all have one form."""

    form: Any


TENSORS = [{"name": str, "dtype": {"activations", "float32", "int64", "bool"}, "shape": [object]}]
FORM = {
    "name": str,
    "family": str,
    "precision": Each(str),
    "image": dict,
    "prompt": dict,
    "tokens": {"tokenizer": str},
    "embeddings": {"file": str, "dtype": {"float16", "bfloat16", "float32"}, "shape": (int, int)},
    "graphs": Each(
        {
            "opset": int,
            "cache?": {"in_place", "concat"},
            "inputs": TENSORS,
            "outputs": TENSORS,
            "files": [{"file": str, "activations": {"float32", "float16"}}],
        }
    ),
    "goldens?": {"file": str},
    "files": Each({"bytes": object, "sha256": str}),  # files may be larger than MOST
}


def parse(file: Path, raw: bytes) -> dict[str, Any]:
    """The manifest in `raw`. Raises InputError where it is no manifest, newer, incomplete or misshapen."""
    if len(raw) > LARGEST:
        raise InputError(
            f"{file} has {len(raw)} bytes; a manifest has {LARGEST} at most. Export the bundle again."
        )
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON ({error}). Copy or export the bundle again.") from None
    number = manifest.get("format") if isinstance(manifest, dict) else None
    if type(number) is not int or number < 1:
        raise InputError(f"{file} has no integer `format`. It is not a manifest of pixelrt.")
    if number > FORMAT:
        raise InputError(
            f"{file} has bundle format {number}; this pixelrt reads up to {FORMAT}. Upgrade pixelrt."
        )
    check(manifest, FORM, str(file))
    return dict(manifest)


def check(value: Any, form: Any, where: str) -> None:
    """Raises InputError unless `value` has this form; `where` says whose part it is."""
    if form is object:
        return
    if isinstance(form, type):
        whole = form is int and type(value) is int and 0 <= value < MOST
        if not (whole if form is int else isinstance(value, form)):
            raise _wrong(where, value, WORDS.get(form, form.__name__))
    elif isinstance(form, set):
        if not isinstance(value, str) or value not in form:
            raise _wrong(where, value, "one of " + ", ".join(sorted(form)))
    elif isinstance(form, list | tuple):
        if not isinstance(value, list) or (isinstance(form, tuple) and len(value) != len(form)):
            raise _wrong(where, value, f"a list of {len(form)}" if isinstance(form, tuple) else "a list")
        forms = form if isinstance(form, tuple) else [form[0]] * len(value)
        for i, (item, inner) in enumerate(zip(value, forms, strict=True)):
            check(item, inner, f"{where}[{i}]")
    else:
        if not isinstance(value, dict):
            raise _wrong(where, value, "an object")
        names = dict.fromkeys(value, form.form) if isinstance(form, Each) else form
        for name, inner in names.items():
            key = name.removesuffix("?") if not isinstance(form, Each) else name
            if key in value:
                check(value[key], inner, f"{where}: {key}")
            elif not name.endswith("?"):
                raise InputError(f"{where} lacks {key}. Copy or export the bundle again.")


def _wrong(where: str, value: Any, wanted: str) -> InputError:
    got = repr(value)
    shown = got if len(got) <= 40 else got[:37] + "..."
    return InputError(f"{where} is {shown}, wanted {wanted}. Copy or export the bundle again.")
