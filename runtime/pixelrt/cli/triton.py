"""`pixelrt triton BUNDLE REPO`."""

from __future__ import annotations

from pathlib import Path

import click

from pixelrt.cli import debug_option, say
from pixelrt.cli.progress import checking


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("repository", metavar="REPO", type=click.Path(path_type=Path))
@click.option("--name", help="The front model's name.  [default: the bundle's folder]")
@click.option(
    "--leaves",
    type=click.Choice(["onnxruntime", "tensorrt", "none"]),
    default="onnxruntime",
    show_default=True,
    help="Triton's backend for encoder and pixel decoder; none: the front model runs them.",
)
@click.option("--gpu/--cpu", default=False, show_default=True, help="Where the models run.")
@click.option("--target", metavar="NAME", help="Engines of the bundle to take, where it has several.")
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="What the front model runs its graphs with: auto, tensorrt, onnxruntime-cuda or onnxruntime.",
)
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Of the front model, on each GPU or on the CPU.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="Requests that Triton gathers at once.",
)
@click.option(
    "--max-wait",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="MS",
    help="How long it waits for more.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Requests that wait; further ones are refused.",
)
@debug_option
def triton(
    bundle: Path,
    repository: Path,
    name: str | None,
    leaves: str,
    gpu: bool,
    target: str | None,
    backend: str,
    instances: int,
    max_batch: int,
    max_wait: float,
    max_queue: int,
) -> None:
    """Write BUNDLE as a model repository of Triton Inference Server to the folder REPO.

    One front model in Python owns the token loop; encoder and pixel decoder are models of their own. With a README, a
    probe that does a real inference, and a client.
    """
    from pixelrt.backends import check_name
    from pixelrt.triton.repository import Wish, write_repository

    check_name(backend)
    wish = Wish(
        name=name or bundle.resolve().name,
        leaves=leaves,
        gpu=gpu,
        backend=backend,
        target=target,
        instances=instances,
        batch=max_batch,
        waiting=max_queue,
        wait_ms=max_wait,
    )
    with checking(bundle) as progress:
        write_repository(bundle, repository, wish, progress)
    say(f"{repository}: {', '.join(wish.models)}")
    load = " ".join(f"--load-model={model}" for model in reversed(wish.models))
    say(f"next: tritonserver --model-repository={repository} --model-control-mode=explicit {load}")
    say(f"then: python3 {repository / 'probe.py'}   ({repository / 'README.md'} says more)")
