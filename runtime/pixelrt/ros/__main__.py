"""`python -m pixelrt.ros --ros-args -p bundle:=FOLDER -p prompt:="Segment the mug." -r image:=/camera/image_raw`"""

from __future__ import annotations

import sys


def main() -> int:
    try:
        from pixelrt.ros.node import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pixelrt"):
            raise
        print(
            f"error: {error.name} is not installed for this Python ({sys.executable}). It comes with ROS 2: "
            "source /opt/ros/DISTRO/setup.bash first, and use the system's Python.",
            file=sys.stderr,
        )
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
