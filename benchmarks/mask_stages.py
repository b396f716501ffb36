"""What the host library saves of a whole `segment`: every stage with it and without it, in turn, on one picture.

    python -m benchmarks.mask_stages BUNDLE [--size 1080 1920] [--rounds 9] [--json FILE]

Prints the median of each stage in ms. Both ways must give the same masks.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
from PIL import Image
from pixelrt_kernels import upsample_mask
from pixelrt_kernels.library import host_library

from benchmarks.upsample_mask import processor

ROOT = Path(__file__).resolve().parents[1]
NAMES = (ROOT / "calib_data" / "classes.txt").read_text(encoding="utf-8").split("\n")[:-1]


def queries(family: str) -> dict[str, Any]:
    if family == "pixellm":
        return {"question": "Segment the red circle and the blue star."}
    classes = {
        f"{len(NAMES)} classes, {task}": pixelrt.Classes(NAMES, task)
        for task in ("panoptic", "instance", "semantic")
    }
    return {**classes, "sentence": pixelrt.Refer("the red circle")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--size", type=int, nargs=2, default=(1080, 1920), help="rows and columns of the picture"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    library = host_library()
    if library is None:
        raise SystemExit("The host library is not built: run make kernels.")
    segmenter = pixelrt.load(asked.bundle)
    picture = Image.open(ROOT / "calib_data" / "scene_01.png").convert("RGB").resize(tuple(asked.size)[::-1])
    frame = segmenter.encode(np.asarray(picture))
    record: dict[str, Any] = {
        "processor": processor(),
        "threads": library.threads,
        "picture": list(asked.size),
        "rounds": asked.rounds,
        "queries": {},
    }
    for name, query in queries(segmenter.bundle.manifest["family"]).items():
        times: dict[str, list[dict[str, float]]] = {"numpy": [], "host library": []}
        masks: dict[str, list[Any]] = {}
        for _ in range(asked.rounds + 1):  # the first is not counted
            for way, used in (("numpy", None), ("host library", library)):
                upsample_mask.host_library = lambda used=used: used  # type: ignore[assignment]
                answer = segmenter.segment(frame, query)
                times[way].append(dict(answer.timing))
                masks[way] = [mask.mask for mask in answer.masks]
        same = [np.array_equal(a, b) for a, b in zip(*masks.values(), strict=True)]
        assert all(same), f"{name}: the two ways differ"
        medians = {
            way: {stage: round(statistics.median(one[stage] for one in each[1:]), 2) for stage in each[0]}
            for way, each in times.items()
        }
        record["queries"][name] = {"masks": len(same), **medians}
        print(f"{name}: {len(same)} masks")
        for way, stages in medians.items():
            spent = ", ".join(f"{stage} {ms:.1f}" for stage, ms in stages.items())
            print(f"  {way:13s} {spent}; together {sum(stages.values()):.1f} ms")
    if asked.json:
        asked.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
