"""`pixelrt inspect BUNDLE`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pixelrt.cli import debug_option


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as it is, with its hash and path.")
@debug_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Say what is in BUNDLE, after checking every file of it: family, precision, graphs, files, origin."""
    from pixelrt.bundle import Bundle

    read = Bundle.read(bundle)
    if as_json:
        document = {"path": str(read.path), "sha256": read.sha256, "manifest": read.manifest}
        click.echo(json.dumps(document, ensure_ascii=False, indent=2))
        return
    for line in describe(read.manifest):
        click.echo(line)
    click.echo(f"sha256     {read.sha256}  (of the manifest, which holds the hash of every file)")
    click.echo(f'\nnext: pixelrt segment {bundle} IMAGE "Segment the mug."')


def describe(manifest: dict[str, Any]) -> Iterator[str]:
    """The lines of a manifest for a reader; parts it does not have are left out."""
    yield f"{manifest['name']}: {manifest['family']}, bundle format {manifest['format']}"
    for key in ("precision", "image", "prompt", "tokens", "language", "embeddings"):
        if manifest.get(key):
            yield f"{key:<10} {_inline(manifest[key])}"
    yield f"{'license':<10} {_inline(manifest.get('license') or 'not stated')}"
    yield ""
    for name, graph in manifest.get("graphs", {}).items():
        facts = ", ".join(f"{key} {graph[key]}" for key in ("opset", "cache") if graph.get(key) is not None)
        yield f"graph {name}" + (f" ({facts})" if facts else "")
        for side in ("inputs", "outputs"):
            for tensor in graph.get(side, []):
                shape = ", ".join(str(size) for size in tensor["shape"])
                yield f"  {side[:-1]:<6}  {tensor['name']:<16}  {tensor['dtype']:<12} [{shape}]"
        for entry in graph.get("files", []):
            yield f"  file    {_inline(entry)}"
    files = manifest.get("files", {})
    total = sum(entry["bytes"] for entry in files.values())
    yield ""
    yield f"{len(files)} files, {size_words(total)}"
    width = max(map(len, files), default=0)
    for name, entry in sorted(files.items()):
        yield f"  {name:<{width}}  {size_words(entry['bytes']):>9}  sha256 {entry['sha256'][:16]}…"
    if manifest.get("provenance"):
        yield "\nprovenance"
        for key, value in manifest["provenance"].items():
            yield f"  {key}: {_inline(value)}"
    yield ""


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
        items = [_inline(item) for item in value[:8]]
        return "[" + ", ".join(items + ([f"… {len(value)} in all"] if len(value) > 8 else [])) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and "\n" in value else str(value)
