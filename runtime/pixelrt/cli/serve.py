"""`pixelrt serve BUNDLE`."""

from __future__ import annotations

from pathlib import Path

import click

from pixelrt.cli import debug_option, say
from pixelrt.cli.progress import checking

MIB = 1 << 20


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one."
)
@click.option(
    "--token",
    envvar="PIXELRT_TOKEN",
    show_envvar=True,
    help="What clients must send as Authorization: Bearer. The variable keeps it out of ps.",
)
@click.option("--allow-anyone", is_flag=True, help="Listen beyond this machine without a token.")
@click.option("--name", help="The model's name for clients.  [default: the bundle's folder]")
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="What runs the graphs: auto, tensorrt, tensorrt-rtx, onnxruntime-cuda or onnxruntime.",
)
@click.option(
    "--max-body",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="MIB",
    help="Size of a request.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=4096 * 4096,
    show_default=True,
    help="Pixels of a picture.",
)
@click.option(
    "--max-prompt",
    type=click.IntRange(min=1),
    default=4000,
    show_default=True,
    help="Characters of a question.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Length of an answer.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Requests that wait; further ones get 429.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Connections open at once.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Requests gathered at once; they share passes of the model.",
)
@click.option(
    "--max-wait",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="MS",
    help="How long a batch that is not full waits for more.",
)
@click.option(
    "--frames",
    type=click.IntRange(min=0),
    default=1024,
    show_default=True,
    metavar="MIB",
    help="Encoded pictures that are kept for further questions.",
)
@click.option(
    "--patience",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    metavar="S",
    help="How long a client may take to send a request, and to take each part of the answer.",
)
@click.option(
    "--drain",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    metavar="S",
    help="How long requests that were taken have after SIGTERM.",
)
@debug_option
def serve(
    bundle: Path,
    host: str,
    port: int,
    token: str | None,
    allow_anyone: bool,
    name: str | None,
    backend: str,
    max_body: int,
    max_pixels: int,
    max_prompt: int,
    max_new_tokens: int,
    max_queue: int,
    max_connections: int,
    max_batch: int,
    max_wait: float,
    frames: int,
    patience: float,
    drain: float,
) -> None:
    """Answer questions over HTTP with BUNDLE, and show a page to ask them on.

    POST /v1/segment, POST /v1/chat/completions, GET /v1/models, /healthz, /readyz, /metrics; the page is at /.
    """  # fmt: skip
    import pixelrt
    from pixelrt.serve.server import bind, url
    from pixelrt.serve.server import serve as run
    from pixelrt.serve.settings import Settings

    settings = Settings(
        name=name or bundle.resolve().name,
        host=host,
        port=port,
        token=token,
        allow_anyone=allow_anyone,
        body_bytes=max_body * MIB,
        pixels=max_pixels,
        prompt_chars=max_prompt,
        new_tokens=max_new_tokens,
        waiting=max_queue,
        connections=max_connections,
        batch=max_batch,
        wait_ms=max_wait,
        frames_bytes=frames * MIB,
        patience_s=patience,
        drain_s=drain,
    )
    with bind(settings) as listening:
        with checking(bundle) as progress:
            segmenter = pixelrt.load(bundle, backend=backend, progress=progress)
        where = url(settings, listening)
        say(f"{settings.name} on {segmenter.backend}: {where}")
        say(f"next:    open {where} in a browser, or: curl -F image=@photo.jpg -F prompt='Segment the mug.' "
            f"{where}/v1/segment")  # fmt: skip
        run(segmenter, settings, listening, say)
