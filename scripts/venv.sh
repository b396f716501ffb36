#!/usr/bin/env bash
# Make the Python environment FOLDER with this checkout of pixelrt in it, or do nothing when it is up to date.
#
#   scripts/venv.sh FOLDER EXTRAS [REQUIREMENT]...
#
# EXTRAS: of pyproject.toml, comma separated. REQUIREMENTs are given to the same pip, to hold a version.
# FOLDER/pixelrt-EXTRAS.stamp records what was installed; PIXELRT_PYTHON names the Python (default: python3).
#
# On a Jetson it is the system's Python (3.10 on JetPack 6, 3.12 on 7) with the system's packages, so that JetPack's
# TensorRT is found; none is ever installed. PIXELRT_ROOT: where to look for a Jetson's files, for tests.
set -euo pipefail

fail() { printf 'error: %s\n' "$1" >&2; exit 1; }

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=$1 extras=$2
shift 2
base=${PIXELRT_PYTHON:-python3}
options=() jetson=
if [ -e "${PIXELRT_ROOT-}/etc/nv_tegra_release" ] ||
  grep -qsa nvidia,tegra "${PIXELRT_ROOT-}/proc/device-tree/compatible"; then
  jetson=yes base=${PIXELRT_PYTHON:-/usr/bin/python3} options=(--system-site-packages)
  case ,$extras, in
    *,tensorrt,* | *,tensorrt-rtx,*) fail "a Jetson has its own TensorRT; pip's does not fit its driver. Leave out that extra." ;;
  esac
  # JetPack 6's own compiled modules (cv2, say) were made for numpy 1.
  set -- 'numpy>=1.26,<2; python_version < "3.11"' "$@"
fi
stamp=$venv/pixelrt-$extras.stamp
wanted="$here [$extras] $* $(sha256sum < "$here/pyproject.toml")"

if "$venv/bin/python" -c '' 2> /dev/null; then
  [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ] || exit 0
else
  "$base" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null ||
    fail "$base is not Python 3.10 to 3.13. Install one of them, or name it: PIXELRT_PYTHON=/path/to/python3.12"
  "$base" -m venv "${options[@]}" "$venv" ||
    fail "$base could not make an environment in $venv. On Debian and Ubuntu: apt install python3-venv"
fi
[ -z "$jetson" ] || grep -qs '^include-system-site-packages = true' "$venv/pyvenv.cfg" ||
  fail "$venv does not see the system's packages, so not JetPack's TensorRT. Remove it, then run this again: rm -rf $venv"

# Where somebody watches, pip shows its progress.
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install $([ -t 1 ] || echo --quiet) "$@"; }
no_pip="pip could not install pixelrt[$extras]; its own words are above. Is there a network, and room on the disk?"

printf 'Installing pixelrt[%s] into %s. The first time takes minutes; later it is skipped.\n' "$extras" "$venv"
case ,$extras, in
  *,export,*) # First and pinned: otherwise other packages may bring another build of it, gigabytes larger.
    pip "torch==2.13.0" ||
      printf 'torch 2.13.0 does not exist for this Python: taking one in the range of pyproject.toml.\n' ;;
esac
pip --editable "$here[$extras]" "$@" || fail "$no_pip"
printf '%s\n' "$wanted" > "$stamp"
[ -z "$jetson" ] || "$venv/bin/python" -c 'import tensorrt' 2> /dev/null ||
  printf 'note: this Python finds no TensorRT. Install it with JetPack: sudo apt install nvidia-jetpack (pixelrt doctor says more)\n'
