#!/usr/bin/env bash
# Make the Python environment FOLDER with this checkout of pixelrt in it, or do nothing when it is up to date.
#
#   scripts/venv.sh FOLDER EXTRAS [REQUIREMENT]...
#
# EXTRAS: of pyproject.toml, comma separated. REQUIREMENTs are given to the same pip, to hold a version.
# FOLDER/pixelrt-EXTRAS.stamp records what was installed; PIXELRT_PYTHON names the Python (default: python3).
set -euo pipefail

fail() { printf 'error: %s\n' "$1" >&2; exit 1; }

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=$1 extras=$2
shift 2
base=${PIXELRT_PYTHON:-python3}
stamp=$venv/pixelrt-$extras.stamp
wanted="$here [$extras] $* $(sha256sum < "$here/pyproject.toml")"

if "$venv/bin/python" -c '' 2> /dev/null; then
  [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ] || exit 0
else
  "$base" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null ||
    fail "$base is not Python 3.10 to 3.13. Install one of them, or name it: PIXELRT_PYTHON=/path/to/python3.12"
  "$base" -m venv "$venv" ||
    fail "$base could not make an environment in $venv. On Debian and Ubuntu: apt install python3-venv"
fi

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
