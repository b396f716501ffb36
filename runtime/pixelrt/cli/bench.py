"""`pixelrt bench BUNDLE [BUNDLE …]`."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixelrt.cli import debug_option, say
from pixelrt.cli.query_options import QueryOptions, query_of, query_options
from pixelrt.errors import InputError
from pixelrt.queries import query_in_words

if TYPE_CHECKING:
    from pixelrt.bench.samples import Question

OUT = "pixelrt-bench"
SAMPLES = Path(__file__).resolve().parents[3] / "calib_data"  # in a checkout; absent from a wheel


@click.command()
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Picture to ask about, may be given more than once.  [default: the sample pictures]",
)
@click.option("--prompt", help="Question to ask.  [default: the samples'; PSALM: their classes, panoptic]")
@query_options
@click.option(
    "--warmUp",
    "--warm-up",
    "warm_up",
    type=click.FloatRange(min=0),
    default=200.0,
    show_default=True,
    help="Milliseconds to answer before anything is counted; each question is answered once at least.",
)
@click.option(
    "--duration",
    type=click.FloatRange(min=0),
    default=3.0,
    show_default=True,
    help="Seconds to measure, at least.",
)
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Answers to each question, at least; p99 is given from 100 answers on.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="As for pixelrt segment.",
)
@click.option("--backend", default="auto", show_default=True, help="What runs the graphs.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=OUT,
    show_default=True,
    help="Folder for NAME.json, bench.md and bench.html.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the JSON of the measurements instead of the tables."
)
@debug_option
def bench(
    bundles: tuple[Path, ...],
    images: tuple[Path, ...],
    prompt: str | None,
    warm_up: float,
    duration: float,
    iterations: int,
    max_new_tokens: int,
    backend: str,
    out: Path,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure BUNDLE: time by stage, memory, energy, throttling. Several are measured in turn and compared.

    Writes NAME.json with every sample (pixelrt compare reads two of them), bench.md and bench.html, a page that needs
    nothing else.
    """  # fmt: skip
    from pixelrt.bench.comparison import compare
    from pixelrt.bench.files import Files
    from pixelrt.bench.measurement import Settings, gpu_memory_used, load_subject, measure
    from pixelrt.bench.page import page
    from pixelrt.bench.record import write_beside
    from pixelrt.bench.statistics import ROUNDS_MIN
    from pixelrt.bench.table import comparison_lines, facts, header, identity, markdown, report, rows
    from pixelrt.bundle import Bundle
    from pixelrt.cli.answer_folder import made_folder

    options = QueryOptions(**asked)
    families = {Bundle.read(path, verify=False).manifest["family"] for path in bundles}
    if len(families) > 1 and prompt is None and options.task is None:
        raise InputError(
            f"Bundles of {' and '.join(sorted(families))} answer different questions. Give one that both take: --prompt"
        )
    questions = questions_of(images, prompt, options, families.pop())
    used = gpu_memory_used(Files())
    subjects = [load_subject(path, backend) for path in bundles]
    began = time.perf_counter()

    def told(done: int, of: int) -> None:
        if sys.stderr.isatty():
            left = (time.perf_counter() - began) / done * (of - done) if done else 0.0
            click.echo(f"\rround {done + 1} of {of}, {left:.0f} s left ", nl=False, err=True)

    with made_folder(out):
        records = measure(
            subjects,
            questions,
            Settings(warm_up, duration, iterations, max_new_tokens),
            told=told,
            used_before=used,
        )
        if sys.stderr.isatty():
            click.echo("\r" + " " * 40 + "\r", nl=False, err=True)
        enough = len(records[0].table("total")) >= ROUNDS_MIN
        comparisons = [compare(records[0], other, ("bundles",)) for other in records[1:]] if enough else []
        names = file_names([record.about["bundle"]["name"] for record in records])
        for name, record in zip(names, records, strict=True):
            write_beside(out / name, json.dumps(record.document(), ensure_ascii=False) + "\n")
        write_beside(out / "bench.md", report(records, comparisons))
        write_beside(out / "bench.html", page(records, comparisons))
    if as_json:
        say(json.dumps([record.document() for record in records], ensure_ascii=False))
        return
    for record in records:
        say(f"{record.title}\n")
        for line in markdown(header(), rows(record)):
            say(line)
        say()
        for name, value in (*facts(record), *identity(record)):
            say(f"{name:<27}  {value}")
        say()
    for comparison in comparisons:
        say(f"{comparison.second.title} against {comparison.first.title}\n")
        for line in comparison_lines(comparison):
            say(line)
        say()
    if len(records) > 1 and not enough:
        say(f"No comparison: it takes {ROUNDS_MIN} rounds. Measure with --iterations {ROUNDS_MIN} or more.\n")
    say(f"page:  {out / 'bench.html'}")
    say(f"next:  {shlex.join(['pixelrt', 'compare', str(out / names[0]), 'ANOTHER.json'])}")


def questions_of(
    images: tuple[Path, ...], prompt: str | None, options: QueryOptions, family: str
) -> list[Question]:
    """What was asked for, else the samples. Raises InputError."""
    from pixelrt.bench.samples import Question
    from pixelrt.queries import Classes

    asked = prompt is not None or options.task is not None
    if images and not asked:
        raise InputError("--image was given without a question. Say what to find: --prompt, or --task")
    query = query_of(prompt, options) if asked else None
    if images:
        assert query is not None
        for image in images:
            if not image.is_file():
                raise InputError(f"{image} is not a file. Give the path of a picture.")
        return [Question(image, query, query_in_words(query)) for image in images]
    try:
        lines = (SAMPLES / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
        classes = (SAMPLES / "classes.txt").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(
            "There are no sample pictures beside this program. Give --image and --prompt."
        ) from None
    samples = [json.loads(line) for line in lines if line.strip()]
    questions = []
    for sample in samples:
        own = Classes([name for name in classes if name]) if family == "psalm" else sample["prompt"]
        this = own if query is None else query
        questions.append(Question(SAMPLES / sample["image"], this, query_in_words(this)))
    return questions


def file_names(bundles: list[str]) -> list[str]:
    """NAME.json; of several with one name NAME-1.json, NAME-2.json."""
    names = []
    for place, name in enumerate(bundles):
        plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".") or "bundle"
        number = f"-{bundles[: place + 1].count(name)}" if bundles.count(name) > 1 else ""
        names.append(f"{plain}{number}.json")
    return names
