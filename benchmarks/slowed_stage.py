"""Does `pixelrt bench` see a slower stage, and nothing where nothing is slower? One graph at a time really sleeps.

    python -m benchmarks.slowed_stage BUNDLE [--slower 0.25] [--iterations 20] [--json FILE]

The bundle is loaded once as it is, once more as it is, and once for each graph with an engine that sleeps for 25 % of
every run's own time. All are measured in turn, on the sample pictures, and each is compared with the first. Ends with
exit code 1 unless each slowed stage is named, and none of the second copy is slower by more than 5 %.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixelrt.bench.comparison import Comparison, compare
from pixelrt.bench.measurement import Settings, Subject, load_subject, measure
from pixelrt.bench.table import comparison_lines, facts
from pixelrt.cli.bench import questions_of
from pixelrt.cli.query_options import QueryOptions

LIMIT = 0.05
STAGES_OF = {"encoder": ("encode",), "language": ("prefill", "decode"), "pixel_decoder": ("pixel_decoder",)}


class Slowed:
    """An engine that takes longer by a share of each run."""

    def __init__(self, engine: Any, share: float) -> None:
        self.engine, self.share, self.file, self.memory = engine, share, engine.file, engine.memory

    def __call__(self, inputs: Mapping[str, Any], into: Mapping[str, Any] | None = None) -> dict[str, Any]:
        start = time.perf_counter()
        outputs: dict[str, Any] = self.engine(inputs, into)
        time.sleep(self.share * (time.perf_counter() - start))
        return outputs


def slowed(bundle: Path, graph: str, share: float) -> Subject:
    subject = load_subject(bundle)
    timed = getattr(subject.segmenter, f"_{graph}")  # the timer stays outside, and sees the sleep
    timed._engine = Slowed(timed._engine, share)
    return subject


def says(comparison: Comparison) -> dict[str, Any]:
    return {
        change.stage: change.ratio
        and [round(x, 4) for x in (change.ratio.value, change.ratio.low, change.ratio.high)]
        for change in comparison.stages
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--slower", type=float, default=0.25)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--questions", type=int, default=4, help="of the twelve samples, the first so many")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    ways = ["the same again", *STAGES_OF]
    subjects = [load_subject(asked.bundle), load_subject(asked.bundle)]
    subjects += [slowed(asked.bundle, graph, asked.slower) for graph in STAGES_OF]
    nothing = QueryOptions(None, None, None, 0.0, False, 0.0, (), (), (), ())
    family = subjects[0].segmenter.bundle.manifest["family"]
    questions = questions_of((), None, nothing, family)[: asked.questions]
    first, *others = measure(subjects, questions, Settings(0.0, 0.0, asked.iterations))
    print("\n".join(f"{name}: {value}" for name, value in facts(first)))
    result: dict[str, Any] = {"slower": asked.slower, "processor": first.about["machine"]["cpu"]}
    good = True
    for way, other in zip(ways, others, strict=True):
        found = compare(first, other)
        named = {change.stage for change in found.failed(LIMIT)}
        wanted = {stage for stage in STAGES_OF.get(way, ()) if stage in first.columns}
        right = wanted <= named <= wanted | {"total"}
        good = good and right
        result[way] = {"named": sorted(named), "right": right, "ratios": says(found)}
        print(f"\n{way}: {'right' if right else 'WRONG'}, named: {', '.join(sorted(named)) or 'none'}\n")
        print("\n".join(comparison_lines(found, LIMIT)))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
