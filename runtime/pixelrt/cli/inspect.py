"""`pixelrt inspect BUNDLE`."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pixelrt.cli import debug_option, say
from pixelrt.cli.progress import checking

SHOWN = 8  # of a list or of named entries; --json has them all


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as it is, with its hash and path.")
@debug_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Say what is in BUNDLE, after checking every file of it: family, precision, graphs, files, origin."""
    from pixelrt.bundle import Bundle

    with checking(bundle) as progress:
        read = Bundle.read(bundle, progress=progress)
    if as_json:
        document = {"path": str(read.path), "sha256": read.sha256, "manifest": read.manifest}
        say(json.dumps(document, ensure_ascii=False, indent=2))
        return
    for line in describe(read.manifest):
        say(line)
    say(f"\nmanifest sha256 {read.sha256} (pins every file: load(…, expect_sha256=…))")
    say(f"next: {shlex.join(['pixelrt', 'segment', str(bundle), 'IMAGE', 'Segment the mug.'])}")


def describe(manifest: dict[str, Any]) -> Iterator[str]:
    """The lines of a manifest for a reader; parts it does not have are left out."""
    yield f"{manifest['name']}: {manifest['family']}, bundle format {manifest['format']}"
    for key in (
        "precision",
        "quantization",
        "verified",
        "goldens",
        "image",
        "prompt",
        "tokens",
        "language",
        "embeddings",
    ):
        if manifest.get(key):
            yield f"{key:<12}  {_inline(manifest[key])}"
    yield f"{'license':<12}  {_inline(manifest.get('license') or 'not stated')}"
    for key, value in manifest.get("provenance", {}).items():
        yield f"{'from':<12}  {key}" + ("" if isinstance(value, dict) else f" {_inline(value)}")
        if isinstance(value, dict):
            yield from (f"{'':<14}  {name}: {_inline(item)}" for name, item in list(value.items())[:SHOWN])
            if len(value) > SHOWN:
                yield f"{'':<14}  … {len(value)} in all"
    for name, graph in manifest["graphs"].items():
        facts = ", ".join(f"{key} {graph[key]}" for key in ("opset", "cache") if graph.get(key) is not None)
        yield f"\ngraph {name}" + (f" ({facts})" if facts else "")
        for side in ("inputs", "outputs"):
            for tensor, dtype, shape in _tensor_rows(graph.get(side, [])):
                yield f"  {side[:-1]:<6}  {tensor:<20}  {dtype:<11}  [{shape}]"
        for entry in graph["files"]:
            facts = ", ".join(f"{key} {_inline(value)}" for key, value in entry.items() if key != "file")
            yield f"  file    {entry['file']}" + (f" ({facts})" if facts else "")
    files = manifest["files"]
    yield f"\n{len(files)} files, {size_words(sum(entry['bytes'] for entry in files.values()))}"
    width = max(map(len, files), default=0)
    for name, entry in sorted(files.items()):
        yield f"  {name:<{width}}  {size_words(entry['bytes']):>9}  sha256 {entry['sha256'][:16]}…"


def _tensor_rows(tensors: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Name, dtype, shape; the same tensor of every layer in one row: `past.0…31.key`."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for tensor in tensors:
        number = re.search(r"(?<=\.)\d+(?=\.)", tensor["name"])
        pattern = tensor["name"] if number is None else tensor["name"].replace(f".{number[0]}.", ".{}.")
        key = (pattern, str(tensor["dtype"]), ", ".join(map(str, tensor["shape"])))
        rows.setdefault(key, []).append(number[0] if number else "")
    return [
        (name.replace("{}", seen[0] if len(seen) == 1 else f"{seen[0]}…{seen[-1]}"), dtype, shape)
        for (name, dtype, shape), seen in rows.items()
    ]


def size_words(count: int) -> str:
    """Bytes with one to three digits before the point: 512 B, 1.5 kB, 13.8 GB (powers of 1000)."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 999.95:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, list):
        more = [f"… {len(value)} in all"] if len(value) > SHOWN else []
        return "[" + ", ".join([*map(_inline, value[:SHOWN]), *more]) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and "\n" in value else str(value)
