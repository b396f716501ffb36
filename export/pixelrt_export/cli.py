"""`pixelrt export` and `pixelrt verify`: join the runtime's command line by the entry points `pixelrt.commands`."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pixelrt.cli import debug_option, say
from pixelrt.cli.progress import ProgressLine
from pixelrt.cli.verify import backend_option, verify_here
from pixelrt.errors import InputError

if TYPE_CHECKING:
    from pixelrt_export.verify.report import Thresholds

# As in pixelrt_export.export, which is not imported before it is needed.
PRECISIONS = click.Choice(["fp32", "fp16", "int8", "int4", "nf4"])
ENCODER, LANGUAGE = click.Choice(["fp32", "fp16", "int8"]), PRECISIONS
PIXEL_DECODER = click.Choice(["fp32", "fp16"])
BLOCKS = click.Choice(["32", "64", "128"])


_vision_tower = click.option(
    "--vision-tower",
    type=click.Path(path_type=Path),
    help="Folder of the CLIP checkpoint, where it does not lie beside CHECKPOINT.",
)


def _thresholds(command: Callable[..., None]) -> Callable[..., None]:
    """--min-iou and --min-same."""
    part = click.FloatRange(0, 1)
    iou = click.option(
        "--min-iou", type=part, default=0.98, show_default=True, help="Mean IoU with the checkpoint's masks."
    )
    same = click.option(
        "--min-same", type=part, default=0.9, show_default=True, help="Part of the questions answered alike."
    )
    return iou(same(command))


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--precision", type=PRECISIONS, default="fp32", show_default=True, help="Of the stored weights."
)
@click.option("--encoder", type=ENCODER, help="Precision of this stage alone.")
@click.option("--language", type=LANGUAGE, help="Precision of this stage alone.")
@click.option("--pixel-decoder", type=PIXEL_DECODER, help="Precision of this stage alone.")
@click.option(
    "--block", type=BLOCKS, default="32", show_default=True, help="Of int4: inputs that share a scale."
)
@click.option(
    "--calib",
    type=click.Path(path_type=Path),
    help="Folder of pictures like yours, with a prompts.jsonl if you like, to calibrate with "
    "(default: calib_data of the project).",
)
@click.option(
    "--nearest",
    is_flag=True,
    help="Round int4 to the nearest steps: no pictures, a fraction of the time, answers a little further off.",
)
@click.option(
    "--head",
    type=click.Choice(["int8", "int4"]),
    help="Round the language model's head too, where its layers are rounded (default: it stays in 16 bits).",
)
@click.option(
    "--gate/--no-gate",
    default=None,
    help="Compare with the checkpoint before the bundle gets its name (default: where layers are rounded).",
)
@click.option("--auto", is_flag=True, help="Keep the layers at fault in 16 bits where the gate says no.")
@click.option(
    "--goldens/--no-goldens",
    default=True,
    help="Keep golden outputs in the bundle, without which its TensorRT engines cannot be verified (default: yes; "
    "takes a run of the bundle).",
)
@click.option("--restart", is_flag=True, help="Use nothing of what a stopped export has left.")
@_thresholds
@_vision_tower
@debug_option
def export(
    checkpoint: Path,
    bundle: Path,
    precision: str,
    encoder: str | None,
    language: str | None,
    pixel_decoder: str | None,
    block: str,
    calib: Path | None,
    nearest: bool,
    head: str | None,
    gate: bool | None,
    auto: bool,
    goldens: bool,
    restart: bool,
    min_iou: float,
    min_same: float,
    vision_tower: Path | None,
) -> None:
    """Turn a CHECKPOINT folder into a BUNDLE folder.

    fp32 changes nothing; fp16 halves the bundle. int8 rounds the encoder's weights and activations and the
    language model's weights, int4 and nf4 the language model's weights; all the rest is then fp16.

    An export that is stopped goes on where it was when the same command is given again.
    """
    from pixelrt.goldens.make import make_goldens

    from pixelrt_export.export import export_bundle
    from pixelrt_export.gate import Refused, export_gated
    from pixelrt_export.quantize.plan import ROUNDED, Settings
    from pixelrt_export.verify.report import Thresholds

    given = {"encoder": encoder, "language": language, "pixel_decoder": pixel_decoder}
    stages = {stage: value for stage, value in given.items() if value}
    rounds = {precision, *stages.values()} & set(ROUNDED)
    if nearest and (language or precision) != "int4":
        raise InputError("--nearest is a way of rounding to int4. Leave it out, or add --precision int4.")
    start = time.perf_counter()
    with ProgressLine() as progress:

        def note(text: str) -> None:
            progress.close()
            say(text, err=True)

        common: dict[str, Any] = {
            "precision": precision,
            "stages": stages,
            "vision_tower": vision_tower,
            "settings": Settings(calib, int(block), not nearest, head=head or "", progress=progress),
            "goldens": (lambda folder: make_goldens(folder, progress)) if goldens else None,
            "restart": restart,
            "note": note,
        }
        verdict = ""
        try:
            if gate or auto or (gate is None and rounds):
                thresholds = Thresholds(min_iou, min_same)
                path, report = export_gated(checkpoint, bundle, **common, thresholds=thresholds, auto=auto)
                verdict = report.sentence()
            else:
                path = export_bundle(checkpoint, bundle, **common)
        except Refused as refused:
            note(f"refused: {refused}")
            raise click.exceptions.Exit(1) from None
        except KeyboardInterrupt:
            note("stopped; the same command goes on where this was")
            raise
    if verdict:
        say(f"verified: {verdict}")
    say(f"{path}  {size_of(path) / 1e6:.1f} MB  {time.perf_counter() - start:.1f} s")
    if click.get_current_context().meta.get("pixelrt.next", True):  # `pixelrt run` has a better one
        say(f"next: {shlex.join(['pixelrt', 'segment', str(path), 'IMAGE', 'Segment the ...'])}")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@backend_option
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Folder of pictures, with a prompts.jsonl if you like (default: calib_data of the project).",
)
@click.option(
    "--replay",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Say where the answer in FILE, written by pixelrt segment --record, goes wrong.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for report.json, report.md and drift.svg; of --replay, replay.json.",
)
@_thresholds
@_vision_tower
@debug_option
def verify(
    bundle: Path,
    checkpoint: Path | None,
    backend: str,
    images: Path | None,
    replay: Path | None,
    out: Path | None,
    min_iou: float,
    min_same: float,
    vision_tower: Path | None,
) -> None:
    """Compare BUNDLE with the CHECKPOINT it was made from: stage by stage, layer by layer, answer by answer.

    The checkpoint is computed in torch, not with the bundle's graphs. Exit code 1 where they differ by more than the
    bundle's precision explains, or answers and masks by more than is wanted; the line says in which stage.

    With --replay, one recorded answer alone; exit code 0 where the checkpoint gives it too.

    Without CHECKPOINT: what BUNDLE gives on this machine is compared with the golden outputs that it holds. TensorRT
    engines that agree are run from then on.
    """
    if checkpoint is None:
        if images or replay or out:
            raise InputError(
                "--images, --replay and --out compare with a checkpoint. Give it: BUNDLE CHECKPOINT."
            )
        verify_here(bundle, backend)
        return
    if backend != "auto":
        raise InputError("--backend is for a bundle without its checkpoint. Leave out one of the two.")
    from pixelrt_export.quantize.records import read_records
    from pixelrt_export.verify.bundle import open_original, verify_bundle
    from pixelrt_export.verify.report import Thresholds

    if replay is not None:
        _replay(bundle, checkpoint, images, replay, out, Thresholds(min_iou, min_same), vision_tower)
        return
    start = time.perf_counter()
    original = open_original(checkpoint, vision_tower)
    records = read_records(images, original.typed)
    with ProgressLine() as progress:
        report = verify_bundle(bundle, original, records, Thresholds(min_iou, min_same), progress)
    _say_stages(report.stages())
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        report.write(out)
        say(f"report: {out / 'report.md'}")
    say(f"{'passed' if report.passed else 'failed'}: {report.sentence()}")
    say(f"{bundle}  {size_of(bundle) / 1e6:.1f} MB  {time.perf_counter() - start:.1f} s")
    if not report.passed:
        raise click.exceptions.Exit(1)
    say(f"next: {shlex.join(['pixelrt', 'segment', str(bundle), 'IMAGE', 'Segment the ...'])}")


def size_of(bundle: Path) -> int:
    return sum(file.stat().st_size for file in bundle.iterdir() if file.is_file())


def _replay(
    bundle: Path,
    checkpoint: Path,
    images: Path | None,
    file: Path,
    out: Path | None,
    thresholds: Thresholds,
    vision_tower: Path | None,
) -> None:
    from pixelrt.bundle import Bundle
    from pixelrt.recording import Recording

    from pixelrt_export.verify.bundle import open_original
    from pixelrt_export.verify.replay import replay
    from pixelrt_export.verify.report import stages_of

    if images is not None:
        raise InputError("--replay brings its own picture: leave out --images.")
    recording = Recording.read(file)
    read = Bundle.read(bundle)
    with ProgressLine() as progress:
        found = replay(read, open_original(checkpoint, vision_tower), recording, thresholds, progress)
    if found.same_bundle:
        say("the recording, and this bundle here given the same:")
        _say_stages(stages_of(found.machine))
        say("this bundle here, and the checkpoint given the same:")
    else:
        say(found.other_bundle() or "")
    _say_stages(found.report.stages())
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "replay.json").write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
        say(f"report: {out / 'replay.json'}")
    say(found.sentence())
    if found.fault[0] != "model":
        raise click.exceptions.Exit(1)


def _say_stages(stages: dict[str, dict[str, float]]) -> None:
    for stage, row in stages.items():
        say(
            f"{stage:<22} largest error {row['error']:8.2g}  may be {row['limit']:<6g}  cosine {row['cosine']:.6f}"
        )
