"""`pixelrt eval BUNDLE... --dataset NAME FOLDER`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pixelrt.cli import debug_option, say
from pixelrt.errors import InputError

OUT = "pixelrt-eval"
DATASETS = ("refcoco", "muse", "coco-panoptic", "coco-instance", "davis")  # as in pixelrt.evaluation.session


@click.command("eval")
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...", type=click.Path(path_type=Path))
@click.option(
    "--dataset",
    required=True,
    type=(click.Choice(DATASETS), click.Path(path_type=Path)),
    metavar="NAME FOLDER",
    help=f"One of {', '.join(DATASETS)}, and the folder it is in.",
)
@click.option("--split", help="Of the dataset.  [default: val, val2017 of COCO]")
@click.option(
    "--images", type=click.Path(path_type=Path), help="Folder of the pictures, where they lie elsewhere."
)
@click.option("--limit", type=click.IntRange(min=1), help="The first N items alone.")
@click.option(
    "--question",
    help='PixelLM: how a sentence is asked, for example "Segment {sent}."  [default: as the paper does]',
)
@click.option(
    "--generate",
    is_flag=True,
    help="refcoco, PixelLM: let the model write its answer; the paper's evaluation gives it.",
)
@click.option(
    "--blind",
    is_flag=True,
    help="davis: do not tell the model which objects a frame shows; the paper's evaluation does.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=OUT,
    show_default=True,
    help="Folder for what was answered.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the scores here.")
@click.option("--markdown", "markdown_file", type=click.Path(path_type=Path), help="Write the table here.")
@click.option("--backend", default="auto", show_default=True, help="What runs the graphs.")
@debug_option
def evaluate(
    bundles: tuple[Path, ...],
    dataset: tuple[str, Path],
    split: str | None,
    images: Path | None,
    limit: int | None,
    question: str | None,
    generate: bool,
    blind: bool,
    out: Path,
    json_file: Path | None,
    markdown_file: Path | None,
    backend: str,
) -> None:
    """Score BUNDLEs on a published dataset, by the measures of the papers: a column a bundle.

    What was answered is kept in --out; the same command continues a run that was stopped. docs/evaluation.md shows
    how the folders look.
    """  # fmt: skip
    from pixelrt import __version__
    from pixelrt.evaluation import session
    from pixelrt.evaluation.benchmark import Options
    from pixelrt.evaluation.report import as_json, document, markdown_table, text_table, write_beside

    for file in (json_file, markdown_file):
        if file is not None and (file.is_dir() or not file.resolve().parent.is_dir()):
            raise InputError(f"{file} cannot be written: give a file in a folder that is there.")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file. Give a folder.")
    clock = time.perf_counter()
    name, folder = dataset
    benchmark = session.open_benchmark(name, folder, Options(split, images, question, generate, blind))
    read = session.check_bundles(bundles, benchmark)
    columns = [
        session.evaluate(bundle, benchmark, out, limit, backend, lambda text: say(text, err=True))
        for bundle in read
    ]
    say(text_table(benchmark, columns))
    if json_file:
        write_beside(json_file, as_json(document(benchmark, columns, __version__)))
    if markdown_file:
        write_beside(markdown_file, markdown_table(benchmark, columns) + "\n")
    say(
        f"\n{len(columns)} × {columns[0].items:,} {benchmark.unit}, {time.perf_counter() - clock:.1f} s: {out}"
    )
