"""Kill exports at random moments, go on each time, and compare with one that was left alone.

    python scripts/killed_exports.py CHECKPOINT SCRATCH [--precision int4 int8 fp16] [--kills 20] [--calib DIR]

For each precision: one export in peace, then SIGKILL after a random part of its time, the same export again, and so on
until one ends; as often as it takes for --kills kills. --lines kills every STEP lines of the journal instead.
Exit code 1 where a byte differs. Linux; needs no GPU.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from pixelrt_export import export, families, work
from pixelrt_export.quantize.plan import Settings

STEP = 40  # lines of the journal between two kills
families.family_of("llava")  # imported once, here, so that each child begins with the export itself


def child(args: argparse.Namespace, precision: str, target: Path, lines: int | None = None) -> int:
    """The id of a process that exports, and kills itself once the journal has got so many lines."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        if lines is not None:
            note, left = work.Work.note, [lines]

            def counted(self: work.Work, key: str, value: object) -> None:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                note(self, key, value)

            work.Work.note = counted  # type: ignore[method-assign]
        settings = Settings(calib=args.calib)
        export.export_bundle(args.checkpoint, target, precision=precision, settings=settings)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(process: int, after: float | None = None) -> bool:
    """Whether it ended by itself; it is killed after so many seconds."""
    end = None if after is None else time.monotonic() + after
    while True:
        found, status = os.waitpid(process, os.WNOHANG if end is not None else 0)
        if found:
            break
        if time.monotonic() > end:  # type: ignore[operator]
            os.kill(process, signal.SIGKILL)
            end = None
        time.sleep(0.002)
    if os.WIFSIGNALED(status):
        return False
    if os.waitstatus_to_exitcode(status):
        raise SystemExit("an export failed")
    return True


def stands_at(target: Path) -> str:
    """What the journal says last, in a word."""
    journal = target.with_name(f".{target.name}.partial") / work.JOURNAL
    lines = journal.read_bytes().splitlines() if journal.is_file() else []
    words = lines[-1].decode(errors="replace").split('"')[3:4] if lines else []
    return words[0].split()[-1].partition(".")[0] if words else "nothing"


def differing(a: Path, b: Path) -> list[str]:
    names = {file.name for folder in (a, b) for file in folder.iterdir()}
    whole = [name for name in names if (a / name).is_file() and (b / name).is_file()]
    return sorted(
        {*names} - {*whole} | {name for name in whole if (a / name).read_bytes() != (b / name).read_bytes()}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--precision", nargs="+", default=["int4", "int8", "fp16"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--lines", action="store_true")
    args = parser.parse_args()
    draw, wrong = random.Random(args.seed), False
    for precision in args.precision:
        folder = args.scratch / precision
        shutil.rmtree(folder, ignore_errors=True)
        start = time.monotonic()
        ended(child(args, precision, folder / "alone" / "b"))
        seconds = time.monotonic() - start
        kills, exports, where = 0, 0, Counter[str]()
        differ: list[str] = []
        while kills < args.kills:
            target = folder / f"killed-{exports}" / "b"
            exports += 1
            while True:
                again = kills < args.kills
                process = child(args, precision, target, STEP if again and args.lines else None)
                if ended(process, draw.uniform(0, seconds) if again and not args.lines else None):
                    break
                kills += 1
                where[stands_at(target)] += 1
            differ = differing(folder / "alone" / "b", target)
            shutil.rmtree(target.parent)
            if differ:
                break
        wrong = wrong or bool(differ)
        verdict = f"{', '.join(differ)} differ" if differ else "same bytes"
        about = f"{kills} kills in {exports} exports ({seconds:.1f} s undisturbed)"
        print(f"{precision}: {about}, {verdict}; killed while writing {dict(where)}", flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
