"""`pixelrt segment BUNDLE IMAGE PROMPT`."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixelrt.cli import debug_option, say
from pixelrt.cli.progress import checking
from pixelrt.cli.query_options import QueryOptions, query_of, query_options
from pixelrt.queries import query_in_words

if TYPE_CHECKING:
    from pixelrt.masks import Mask
    from pixelrt.segmenter import Result

OUT = "pixelrt-out"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@query_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=OUT,
    show_default=True,
    help="Folder for answer.json, overlay.png and mask_N.png.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Length of the answer at most; a mask once begun is finished, which may take a few tokens more.",
)
@click.option(
    "--seg-runs",
    type=click.Choice(["complete", "original"]),
    default="complete",
    show_default=True,
    help="Finish a mask's tokens once begun, or do as the original code, which drops all masks "
    "of an answer with an unfinished one.",
)
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write what went through each graph, for pixelrt verify --replay FILE.",
)
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="What runs the graphs: auto, tensorrt, tensorrt-rtx, onnxruntime-cuda or onnxruntime.",
)
@click.option(
    "--stream",
    is_flag=True,
    help="Print words as they come, and write and print each mask as soon as it is there.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print answer.json instead of the summary; with --stream a line of JSON for each piece, it last.",
)
@debug_option
def segment(
    bundle: Path,
    image: Path,
    prompt: str | None,
    out: Path,
    max_new_tokens: int,
    seg_runs: str,
    record: Path | None,
    backend: str,
    stream: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Ask BUNDLE the question PROMPT about IMAGE, or give it a --task.

    Writes answer.json, overlay.png and mask_1.png, mask_2.png, ... (8 bit, 0 or 255, at the size of IMAGE).
    --task panoptic also writes COCO's panoptic.png and panoptic.json, instance instances.json, semantic
    semantic.png.
    """  # fmt: skip
    import pixelrt
    from pixelrt.cli.answer_folder import GrowingAnswer, made_folder, write_answer
    from pixelrt.cli.streamed import told
    from pixelrt.errors import InputError
    from pixelrt.masks import Answer
    from pixelrt.recording import recorded
    from pixelrt.recording_file import check_target

    query = query_of(prompt, QueryOptions(**asked))
    words = query_in_words(query)
    if record is not None:
        if stream:
            raise InputError("--stream and --record do not go together. Record the answer without --stream.")
        check_target(record)
    with made_folder(out):
        start = time.perf_counter()
        with checking(bundle) as progress:
            segmenter = pixelrt.load(bundle, backend=backend, progress=progress)
        load_ms = 1e3 * (time.perf_counter() - start)
        about = {
            "image": str(image),
            "prompt": words,
            "bundle": {"path": str(segmenter.bundle.path), "sha256": segmenter.bundle.sha256},
            "backend": segmenter.backend,
        }
        there = 0
        if record is not None:
            frame, answer = recorded(segmenter, image, query, record, max_new_tokens, seg_runs)
        else:
            segmenter.check(query, image, max_new_tokens, seg_runs)
            frame = segmenter.encode(image)
            if stream:
                growing = GrowingAnswer(out, frame.image, about)
                answer = told(segmenter.stream(frame, query, max_new_tokens, seg_runs), growing, as_json)
                there = len(growing.masks)
            else:
                answer = segmenter.segment(frame, query, max_new_tokens=max_new_tokens, seg_runs=seg_runs)
        clock = time.perf_counter()
        stages = {**frame.timing, **answer.timing}
        document = write_answer(out, answer, frame.image, words, about, stages, there)
        write_ms = 1e3 * (time.perf_counter() - clock)
    passed = 1e3 * (time.perf_counter() - start)
    if as_json:
        line = json.dumps({"answer": document}, ensure_ascii=False)
        say(line if stream else json.dumps(document, ensure_ascii=False, indent=2))
        return
    said = isinstance(answer, Answer) and answer.text
    if said and not stream:
        say(answer.text)
    if isinstance(answer, Answer) and said and not answer.finished:
        say(_cut_off(len(answer.token_ids), max_new_tokens))
    if said and not stream:
        say()
    for line in _mask_lines(answer, out)[there:]:
        say(line)
    say(f"\nbackend: {segmenter.backend}")
    for line in _timing_lines(
        {"load": load_ms, **stages, "write files": write_ms}, passed if stream else None
    ):
        say(line)
    say(f"\noverlay: {out / 'overlay.png'}")
    if record is not None:
        say(f"record:  {record}  {record.stat().st_size / 1e6:.1f} MB")
    another = ["Another question."] if isinstance(query, str) else ["--task", "interactive", *_place(answer)]
    command = ["pixelrt", "segment", str(bundle), str(image), *another, "--out", str(out)]
    say(f"next:    {shlex.join(command)}")


def _cut_off(tokens: int, max_new_tokens: int) -> str:
    why = "raise --max-new-tokens" if tokens >= max_new_tokens else "the model has no room for more"
    return f"the answer was cut off after {tokens} tokens: {why}"


def _place(answer: Result) -> list[str]:
    """A pixel to ask about: one in the middle of the first object, (0, 0) where there is none."""
    import numpy as np

    for mask in answer.masks:
        if mask.area:
            rows, columns = np.nonzero(mask.mask)
            return ["--point", f"{columns[len(columns) // 2]},{rows[len(rows) // 2]}"]
    return ["--point", "0,0"]


def _mask_lines(answer: Result, out: Path) -> list[str]:
    if not answer.masks:
        return ["no masks in this answer"]
    width = min(40, max(len(mask.label) for mask in answer.masks))
    return [
        mask_line(number, mask, out / f"mask_{number}.png", width)
        for number, mask in enumerate(answer.masks, start=1)
    ]


def mask_line(number: int, mask: Mask, file: Path, width: int = 0) -> str:
    """width: of the labels, where lines stand below each other."""
    what = "empty" if mask.box is None else f"box {','.join(map(str, mask.box))}  {mask.area:,} px"
    return f"mask {number}  {mask.label:<{width}}  score {mask.score:.2f}  {what}  {file}"


def _timing_lines(stages: dict[str, float], passed: float | None) -> list[str]:
    """A table in milliseconds. passed: the time it took, where stages overlap; else it is their sum."""
    rows = {name.replace("_", " "): spent for name, spent in stages.items() if name != "total"}
    total = "total" if passed is None else "total (stages overlap)"
    rows[total] = sum(rows.values()) if passed is None else passed
    width = max(map(len, rows))
    return [f"{name:<{width}}  {spent:>9,.1f} ms" for name, spent in rows.items()]
