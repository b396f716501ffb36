"""`pixelrt segment BUNDLE IMAGE PROMPT`."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pixelrt.cli import debug_option, say

if TYPE_CHECKING:
    from pixelrt.masks import Answer

OUT = "pixelrt-out"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("prompt")
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
@click.option("--backend", default="auto", show_default=True, help="What runs the graphs.")
@click.option("--json", "as_json", is_flag=True, help="Print answer.json instead of the summary.")
@debug_option
def segment(
    bundle: Path,
    image: Path,
    prompt: str,
    out: Path,
    max_new_tokens: int,
    seg_runs: str,
    backend: str,
    as_json: bool,
) -> None:
    """Ask BUNDLE the question PROMPT about IMAGE.

    Writes answer.json, overlay.png and mask_1.png, mask_2.png, ... (8 bit, 0 or 255, at the size of IMAGE).
    """  # fmt: skip
    import pixelrt
    from pixelrt.cli.answer_folder import made_folder, write_answer

    with made_folder(out):
        clock = time.perf_counter()
        segmenter = pixelrt.load(bundle, backend=backend)
        load_ms = 1e3 * (time.perf_counter() - clock)
        frame = segmenter.encode(image)
        answer = segmenter.segment(frame, prompt, max_new_tokens=max_new_tokens, seg_runs=seg_runs)
        clock = time.perf_counter()
        answer = replace(answer, timing={**frame.timing, **answer.timing})
        about = {
            "image": str(image),
            "prompt": prompt,
            "bundle": {"path": str(segmenter.bundle.path), "sha256": segmenter.bundle.sha256},
            "backend": segmenter.backend,
        }
        document = write_answer(out, answer, frame.image, prompt, about)
        write_ms = 1e3 * (time.perf_counter() - clock)
    if as_json:
        say(json.dumps(document, ensure_ascii=False, indent=2))
        return
    say(answer.text)
    if not answer.finished:
        say(_cut_off(len(answer.token_ids), max_new_tokens))
    say()
    for line in _mask_lines(answer, out):
        say(line)
    say()
    for line in _timing_lines({"load": load_ms, **answer.timing, "write files": write_ms}):
        say(line)
    say(f"\noverlay: {out / 'overlay.png'}")
    command = ["pixelrt", "segment", str(bundle), str(image), "Another question.", "--out", str(out)]
    say(f"next:    {shlex.join(command)}")


def _cut_off(tokens: int, max_new_tokens: int) -> str:
    why = "raise --max-new-tokens" if tokens >= max_new_tokens else "the model has no room for more"
    return f"the answer was cut off after {tokens} tokens: {why}"


def _mask_lines(answer: Answer, out: Path) -> list[str]:
    if not answer.masks:
        return ["no masks in this answer"]
    width = min(40, max(len(mask.label) for mask in answer.masks))
    lines = []
    for number, mask in enumerate(answer.masks, start=1):
        what = "empty" if mask.box is None else f"box {','.join(map(str, mask.box))}  {mask.area:,} px"
        file = out / f"mask_{number}.png"
        lines.append(f"mask {number}  {mask.label:<{width}}  score {mask.score:.2f}  {what}  {file}")
    return lines


def _timing_lines(stages: dict[str, float]) -> list[str]:
    """A table in milliseconds with the sum of the stages."""
    rows = {name.replace("_", " "): spent for name, spent in stages.items() if name != "total"}
    rows["total"] = sum(rows.values())
    width = max(map(len, rows))
    return [f"{name:<{width}}  {spent:>9,.1f} ms" for name, spent in rows.items()]
