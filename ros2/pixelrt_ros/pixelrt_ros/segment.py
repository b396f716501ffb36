"""`ros2 run pixelrt_ros segment --ros-args -p bundle:=FOLDER -p prompt:="Segment the mug."`"""

from __future__ import annotations

import sys


def main() -> int:
    try:
        from pixelrt.ros.__main__ import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pixelrt":
            raise
        print(
            f"error: pixelrt is not installed for this Python ({sys.executable}). Run: pip install 'pixelrt[cpu]'",
            file=sys.stderr,
        )
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
