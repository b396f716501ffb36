"""`pixelrt bag BUNDLE IN.mcap OUT.mcap --prompt TEXT`."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path
from typing import Any

import click

from pixelrt.cli import debug_option, say
from pixelrt.cli.progress import ProgressLine, checking, duration
from pixelrt.cli.query_options import QueryOptions, query_of, query_options
from pixelrt.errors import InputError

TOPIC = re.compile(r"(/[A-Za-z_][A-Za-z0-9_]*)+")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--prompt", metavar="TEXT", help="The question about every image.")
@query_options
@click.option("--topic", metavar="NAME", help="The images, where IN has several topics of them.")
@click.option("--prefix", metavar="NAME", default="/pixelrt", show_default=True,
              help="Before the names of the topics that are added.")  # fmt: skip
@click.option(
    "--numbers",
    type=click.Choice(["class", "instance"]),
    default="class",
    show_default=True,
    help="What a number in the label map stands for: a label, or one mask of its image.",
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True,
              help="Length of an answer at most.")  # fmt: skip
@click.option("--backend", default="auto", show_default=True, help="What runs the graphs.")
@click.option("--restart", is_flag=True, help="Forget what a stopped run has found, and begin anew.")
@debug_option
def bag(
    bundle: Path,
    source: Path,
    target: Path,
    prompt: str | None,
    topic: str | None,
    prefix: str,
    numbers: str,
    max_new_tokens: int,
    backend: str,
    restart: bool,
    **asked: Any,
) -> None:
    """Ask BUNDLE about every image of the recording IN, and write OUT: IN with the answers in it.

    IN is an .mcap or .db3 file or a folder of ros2 bag; OUT is an MCAP file with all topics of IN and, with the time
    and the header of each image, PREFIX/label_map, PREFIX/detections and PREFIX/label_info. A run that was stopped
    goes on where it was when the same command is given again. No ROS is needed.
    """
    import pixelrt
    from pixelrt.bag.processing import Task, journal_of, process
    from pixelrt.bag.recording import opened

    options = QueryOptions(**asked)
    if prompt is None and options.task is None:
        raise InputError('no question was given. Give one: --prompt "Segment the mug."')
    if options.task == "interactive":
        raise InputError(
            "--task interactive marks places in one picture, which move from image to image. Use another task."
        )
    query = query_of(prompt, options)
    if target.suffix != ".mcap":
        raise InputError(f"OUT is {target}, but an MCAP file is written. Give a name that ends with .mcap.")
    if target.exists():
        raise InputError(f"{target} exists already. Give another name, or remove it.")
    prefix = "/" + prefix.strip("/")
    if not TOPIC.fullmatch(prefix):
        raise InputError(
            f"--prefix {prefix} is no name of a topic. Give letters, digits and _, like /pixelrt."
        )
    clock = time.perf_counter()
    with opened(source) as recording:
        task = Task(query, recording.image_topic(topic), prefix, numbers, max_new_tokens)
        recording.refuse_clashes(task.topics())
        with checking(bundle) as checked:
            segmenter = pixelrt.load(bundle, backend=backend, progress=checked)
        segmenter.check(query, max_new_tokens=max_new_tokens)
        if restart:
            journal_of(target).unlink(missing_ok=True)
        with ProgressLine() as line:
            summary = process(segmenter, recording, target, task, line)
    known = summary.images - summary.asked
    if known:
        say(f"went on behind image {known:,}")
    if summary.unread:
        say(
            f"{summary.unread:,} images could not be read and have no answer; the first: {summary.why_unread}"
        )
    size = target.stat().st_size / 1e6
    say(
        f"{target}  {size:.1f} MB  {summary.images:,} images of {task.topic}, {summary.masks:,} masks, "
        f"{duration(time.perf_counter() - clock)}"
    )
    say(f"next:    ros2 bag info {shlex.quote(str(target))}    (or open it in Foxglove)")
