"""Do the graphs of both families build as TensorRT-RTX engines? Without a GPU, for the architectures it knows.

    python benchmarks/rtx_engines.py SCRATCH [--width tiny|full] [--family F] [--precision P] [--target T]
                                      [--graph G] [--json FILE]

tiny: the shipped checkpoints. full: random weights of the released widths (CLIP-L/14 at 448 px and LLaMA-7B's width;
Swin-B at 1024 px and Phi-1.5's width), two language layers. int8 is calibrated on one picture and int4 rounded to
nearest steps, since the numbers do not matter here. SCRATCH keeps all files (full: 12 GB).
Needs tensorrt-rtx-cu13-libs and -bindings. Engines are counted as built, not as right: that takes a GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).resolve().parent))
FAMILIES = ("pixellm", "psalm")
PRECISIONS = ("fp16", "int8", "int4")
TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120")
GRAPHS = ("encoder", "language", "pixel_decoder")
LAYERS = 2


def checkpoint(scratch: Path, family: str, width: str) -> Path:
    """The folder that `pixelrt export` takes; written if it is not there."""
    if width == "tiny":
        return ROOT / "checkpoints" / f"{family}-tiny"
    folder = scratch / f"{family}-full-checkpoint"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        write_pixellm(partial) if family == "pixellm" else write_psalm(partial)
        partial.rename(folder)
    return folder / "pixellm" if family == "pixellm" else folder


def write_pixellm(folder: Path) -> None:
    sizes = {"hidden": 4096, "heads": 32, "intermediate": 11008, "layers": LAYERS}
    flags = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    script = ROOT / "benchmarks" / "random_checkpoint.py"
    subprocess.run([sys.executable, str(script), str(folder), *flags], check=True)


def write_psalm(folder: Path) -> None:
    import psalm_full_size

    psalm_full_size.SIZES = psalm_full_size.SIZES | {"num_hidden_layers": LAYERS}
    deeper = re.compile(r"\.layers\.(\d+)\.(self_attn|mlp|input_layernorm)")

    def kept(name: str) -> bool:
        found = deeper.search(name)
        return not (name.startswith("model.layers.") and found and int(found[1]) >= LAYERS)

    psalm_full_size.write_checkpoint(folder, kept)


def bundle(scratch: Path, family: str, width: str, precision: str) -> Path:
    from pixelrt_export.export import export_bundle
    from pixelrt_export.quantize.plan import Settings

    folder = scratch / f"{family}-{width}-{precision}"
    if folder.exists():
        return folder
    pictures = scratch / "pictures"
    if not pictures.exists():
        pictures.mkdir(parents=True)
        (pictures / "scene.png").write_bytes((ROOT / "calib_data" / "scene_01.png").read_bytes())
    settings = Settings(calib=pictures, calibrated=False)
    return export_bundle(checkpoint(scratch, family, width), folder, precision=precision, settings=settings)


def build(folder: Path, target: str, graphs: tuple[str, ...]) -> dict[str, object]:
    """Graph -> what its engine's list says, or the sentence of the refusal."""
    from pixelrt.build.builder import Wish, build_engines, site_of
    from pixelrt.bundle import Bundle
    from pixelrt.errors import InputError

    read, wish = Bundle.read(folder), Wish(target, "tensorrt-rtx", graphs)
    site = site_of(read, wish)
    try:
        records = build_engines(read, site, wish, say=print).records
    except InputError as error:
        return {"refused": str(error)}
    facts = ("source", "precision", "bytes", "layers", "seconds", "version")
    return {graph: {fact: getattr(record, fact) for fact in facts} for graph, record in records.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--width", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--target", action="append")
    parser.add_argument("--graph", choices=GRAPHS, action="append")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    for family in args.family or FAMILIES:
        for precision in args.precision or PRECISIONS:
            folder = bundle(args.scratch, family, args.width, precision)
            for target in args.target or TARGETS:
                row = {"family": family, "width": args.width, "precision": precision, "target": target}
                row["engines"] = build(folder, target, tuple(args.graph or GRAPHS))
                print(json.dumps(row))
                results.append(row)
                if args.json:
                    args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
