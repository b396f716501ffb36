"""The language model in int4 on the CPU: pixelrt's graph against onnxruntime-genai's, same weights, in turn.

    python -m benchmarks.peers.genai SCRATCH [--width 1024] [--layers 6] [--runs 7] [--operators] [--smoke]

Writes a random LLaMA whose weights int4 does not change, exports it with pixelrt and with onnxruntime-genai's model
builder (installed into SCRATCH), and times both in one process over the same ONNX Runtime with the same threads:
the prefill of 256 and of 1,024 tokens, then 64 tokens one by one behind them. Both give the same tokens or there is
nothing to compare. Three pairs:

    head in 16 bits   what a bundle holds; genai without rounding its head, which is then in float32. Ours has a
                      shortlist: 8 bits say which tokens may be best, 16 which one is (docs/speed.md)
    head in int4      all of it in int4, as genai makes it; ours rounded the same
    as they come      a bundle against genai with no options: unlike weights in the head, and logits of all prompt rows

In the first two genai computes logits of the prompt's last row only (prune_lm_head), as our graph does when asked
for one. Wanted of the first: geometric mean of all ratios at most 1.0, of decoding alone at most 1.1. SCRATCH keeps
what is built; --prepare builds and ends. --operators: nodes and times by operator in place of the comparison.
--cpu-time: seconds of the processor with one thread, for a machine that has other things to do; no measure of speed.
--smoke: a toy, to try the command.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pixelrt.bundle import GraphFile

from benchmarks.peers.decoders import Genai, Ours, build, with_threads
from benchmarks.peers.operators import Profiled, accuracy_levels, optimised, table
from benchmarks.peers.packages import GENAI, beside
from benchmarks.peers.random_llama import SPECIAL, Size, export_language, write_llama
from benchmarks.peers.turns import RESULTS, Ratio, about, in_turn, markdown, ratio, said, written

PROMPTS, DECODED = (256, 1024), 64
WANTED, WANTED_DECODING = 1.0, 1.1
# Of logits, which reach 2 to 16: both round activations to int8, and one value in a million falls to the other side.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Pair:
    name: str
    rounded_head: bool  # of ours
    options: tuple[str, ...]  # of genai's model builder


PAIRS = (
    Pair("head in 16 bits", False, ("nodes_to_exclude=/lm_head/MatMul", "prune_lm_head=true")),
    Pair("head in int4", True, ("prune_lm_head=true",)),
    Pair("as they come", False, ()),
)


@dataclass(frozen=True)
class Built:
    """Both sides' graphs of one model."""

    checkpoint: Path
    ours: dict[bool, GraphFile]  # whether the head is in int4
    theirs: dict[str, Path]  # pair -> folder


def built(scratch: Path, size: Size, pairs: Sequence[Pair], site: Path) -> Built:
    place = scratch / f"llama-{size.width}x{size.layers}"
    checkpoint = place / "checkpoint"
    if not checkpoint.is_dir():
        partial = place / "checkpoint.partial"
        shutil.rmtree(partial, ignore_errors=True)
        print(f"{place.name}: writing random weights", flush=True)
        write_llama(partial, size).rename(checkpoint)
    ours = {}
    for rounded in sorted({pair.rounded_head for pair in pairs}):
        print(f"{place.name}: pixelrt's graph, head in {'int4' if rounded else '16 bits'}", flush=True)
        ours[rounded] = export_language(checkpoint, place / f"ours-{int(rounded)}", rounded)
    theirs = {}
    for pair in pairs:
        print(f"{place.name}: onnxruntime-genai's graph, {pair.name}", flush=True)
        theirs[pair.name] = build(checkpoint, place / f"genai {pair.name}", pair.options, site)
    return Built(checkpoint, ours, theirs)


def agree(ours: Ours, theirs: Genai, prompt: Sequence[int], rounded_head: bool, count: int = 8) -> float:
    """Largest difference of logits; ends the program where the two say something else. Warms both up.

    rounded_head: all of them are compared; else the two best, which alone our graph promises (its shortlist).
    """
    (mine, logits, _), (other, _) = ours.answer(prompt, count), theirs.answer(prompt, count)
    differences = np.abs(logits - theirs.logits(prompt, count))
    off = float((differences if rounded_head else differences[np.argsort(logits)[-2:]]).max())
    if mine != other or off > TOLERANCE:
        raise SystemExit(f"the two sides differ: {mine}, {other}, logits by {off:.3g}")
    print(f"same tokens; logits differ by {off:.2g} at most, and reach {logits.max():.2g}", flush=True)
    return off


def compare(found: Built, size: Size, pairs: Sequence[Pair], args: argparse.Namespace) -> dict[str, Any]:
    from safetensors.numpy import load_file

    clock = time.process_time if args.cpu_time else time.perf_counter
    embeddings = load_file(found.checkpoint / "model.safetensors")["model.embed_tokens.weight"]
    ours = {rounded: Ours(file, embeddings, args.threads, clock) for rounded, file in found.ours.items()}
    theirs = {name: Genai(with_threads(folder, args.threads), clock) for name, folder in found.theirs.items()}
    rng, document = np.random.default_rng(11), {}
    rows = []
    prompts = {length: rng.integers(SPECIAL, size.vocab, length).tolist() for length in args.prompts}
    minutes = args.minutes / (len(pairs) * len(prompts))
    for pair in pairs:
        mine, other = ours[pair.rounded_head], theirs[pair.name]
        ratios: dict[str, dict[int, Ratio]] = {"prefill": {}, "token": {}}
        times, off = {}, 0.0
        for length, prompt in prompts.items():
            off = max(off, agree(mine, other, prompt, pair.rounded_head))
            ways = {
                "pixelrt": lambda prompt=prompt: mine.answer(prompt, args.decoded)[2],  # noqa: B023
                "genai": lambda prompt=prompt: other.answer(prompt, args.decoded)[1],  # noqa: B023
            }
            print(f"{pair.name}, {length} tokens", flush=True)
            times[length] = in_turn(ways, args.runs, minutes)
            for what, by_length in ratios.items():
                one, two = ([each[what] for each in times[length][way]] for way in ways)
                by_length[length] = ratio(one, two)
                name = f"prefill of {length}" if what == "prefill" else f"a token behind {length}"
                rows.append([pair.name, name, said(one), said(two), str(by_length[length])])
        decoding = geometric_mean([each.median for each in ratios["token"].values()])
        both = geometric_mean([each.median for kind in ratios.values() for each in kind.values()])
        rows.append([f"**{pair.name}**", "decoding alone", "", "", f"**{decoding:.2f}**"])
        rows.append([f"**{pair.name}**", "all", "", "", f"**{both:.2f}**"])
        document[pair.name] = {
            "options": pair.options,
            "logits_differ_by": off,
            "ratios": ratios,
            "decoding": decoding,
            "all": both,
            "times_s": times,
        }
    titles = ["pair", "", "pixelrt", "onnxruntime-genai", "pixelrt over genai (median, range)"]
    print("\n" + markdown(titles, rows))
    print(f"\nwanted of the first pair: all at most {WANTED}, decoding alone at most {WANTED_DECODING}")
    return document


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def show_operators(
    found: Built, size: Size, scratch: Path, pairs: Sequence[Pair], args: argparse.Namespace
) -> None:
    for pair in pairs:
        paths = {
            "pixelrt": found.ours[pair.rounded_head].path,
            "onnxruntime-genai": found.theirs[pair.name] / "model.onnx",
        }
        for length in args.prompts:
            for past, new, times in ((length, 1, 32), (0, length, 5)):
                what = f"one token behind {past}" if past else f"prefill of {new}"
                print(f"\n{pair.name}: {what} (nodes a run, time a run)\n", flush=True)
                sides = {
                    name: Profiled(path, size.head_dim, args.threads, scratch).run(past, new, times)
                    for name, path in paths.items()
                }
                print(table(sides))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all pairs together")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="the first so many")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--operators", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/genai-WIDTH.json")
    args = parser.parse_args()
    size, args.prompts, args.decoded = Size(args.width, args.layers), PROMPTS, DECODED
    if args.smoke:
        # No size twice: genai's builder knows a head by the size of the vocabulary.
        size, args.runs = Size(128, 2, vocab=640, head_dim=64), 2
        args.prompts, args.decoded = (16, 40), 6
    if args.cpu_time:
        args.threads = 1
    args.scratch.mkdir(parents=True, exist_ok=True)
    scratch, pairs = args.scratch.resolve(), PAIRS[: args.pairs]
    site = beside(scratch / "packages", *GENAI)
    state = about(*(requirement.partition("==")[0] for requirement in GENAI))
    found = built(scratch, size, pairs, site)
    if args.prepare:
        return
    if args.operators:
        show_operators(found, size, scratch, pairs, args)
        return
    sides = [found.ours[pairs[0].rounded_head].path, found.theirs[pairs[0].name] / "model.onnx"]
    levels = [accuracy_levels(optimised(path, scratch)) for path in sides]
    print(f"accuracy_level of MatMulNBits: pixelrt {levels[0]}, onnxruntime-genai {levels[1]}", flush=True)
    document = {
        **state,
        "model": size.config,
        "threads": args.threads,
        "clock": "CPU time" if args.cpu_time else "wall time",
        "runs": args.runs,
        "decoded": args.decoded,
        "accuracy_levels": dict(zip(("pixelrt", "onnxruntime-genai"), levels, strict=True)),
        "pairs": compare(found, size, pairs, args),
    }
    written(document, args.json or (None if args.smoke else RESULTS / f"genai-{size.width}.json"))


if __name__ == "__main__":
    main()
