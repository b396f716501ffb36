#!/usr/bin/env bash
# From a checkpoint or a bundle to masks on a picture.
#
#   ./build_engines.sh                                    both shipped small models, from nothing
#   ./build_engines.sh CHECKPOINT_OR_BUNDLE [ARGUMENT]... your own
#   ./build_engines.sh -h                                 this text
#
# It makes a Python environment in .venv beside this file, installs what is needed, and runs
#
#   pixelrt run CHECKPOINT_OR_BUNDLE [ARGUMENT]...
#
# which exports a checkpoint to bundles/NAME (unless the bundle there was made from it), builds TensorRT engines in
# the bundle where TensorRT and an NVIDIA GPU are (`pixelrt build`, docs/tensorrt.md), asks a sample question about a
# sample picture, and prints the answer, the time of each stage, the path of the overlay picture and the
# next command. ARGUMENTs are those of `pixelrt run`, for example --image P --prompt T --vision-tower DIR, or for a
# PSALM --task panoptic --classes FILE.
# A bundle needs only the light runtime; a checkpoint also needs PyTorch (a download of some hundred megabytes, or
# gigabytes where only CUDA builds of it are offered).
#
# Without TensorRT the graphs run on the CPU, also on a Jetson or beside an NVIDIA GPU.
#
# On a Jetson the environment sees the system's packages, JetPack's TensorRT among them; docs/jetson.md goes from a
# flashed device to masks. What is missing anywhere, and how to mend it: .venv/bin/pixelrt doctor
#
# PIXELRT_PYTHON=PROGRAM  the Python to make the environment with, 3.10 to 3.13 (default: python3)
# PIXELRT_VENV=FOLDER     use this environment as it is; nothing is installed
set -euo pipefail

case "${1-}" in -h | --help) exec sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" ;; esac

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

if [ -z "${PIXELRT_VENV-}" ]; then
  extras=cpu,export
  [ ! -f "${1-}/manifest.json" ] || extras=cpu
  "$here/scripts/venv.sh" "$here/.venv" "$extras"
  # Faster masks where a C++ compiler is at hand; without one the same masks are made by numpy.
  "$here/.venv/bin/python" -m pixelrt_kernels.build --host --quiet || true
fi
venv=${PIXELRT_VENV:-$here/.venv}
run() { "$venv/bin/python" -m pixelrt.cli run --engines "$@"; }
shipped() { run "$here/checkpoints/$1" --bundle "$here/bundles/$1" --out "$here/pixelrt-out/$1" "${@:2}"; }

if [ $# -gt 0 ]; then
  run "$@"
else
  printf 'PixelLM: a question, an answer with a mask for each thing it names\n\n'
  shipped pixellm-tiny
  printf '\n\nPSALM: classes, a sentence or a place, and every mask in one pass\n\n'
  shipped psalm-tiny --image "$here/calib_data/scene_06.png" --task panoptic --classes "$here/calib_data/classes.txt"
fi
printf '         (once in each terminal, so that it knows pixelrt:  source %q)\n' "$venv/bin/activate"
