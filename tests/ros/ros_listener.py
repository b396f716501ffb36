"""A listener for test_ros.py, in a process of its own: one line of JSON for each label map and each diagnosis.

A line on stdin makes it listen to the overlay too.
"""

from __future__ import annotations

import base64
import json
import sys
import threading
import zlib

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image


def main() -> None:
    rclpy.init()
    node = rclpy.create_node("listener")

    def mapped(message: Image) -> None:
        say(
            stamp=message.header.stamp.sec,
            frame=message.header.frame_id,
            encoding=message.encoding,
            size=[message.height, message.width, message.step],
            data=base64.b64encode(zlib.compress(bytes(message.data))).decode(),
        )

    def diagnosed(message: DiagnosticArray) -> None:
        (status,) = message.status
        values = {pair.key: pair.value for pair in status.values}
        say(level=status.level[0], message=status.message, values=values)

    def overlaid(message: Image) -> None:
        size = [message.height, message.width, message.step]
        say(overlay=message.header.stamp.sec, encoding=message.encoding, size=size)

    def listen() -> None:
        for _ in sys.stdin:
            node.create_subscription(Image, "/pixelrt/overlay", overlaid, 10)

    def say(**line: object) -> None:
        print(json.dumps(line), flush=True)

    node.create_subscription(Image, "/pixelrt/label_map", mapped, 10)
    node.create_subscription(DiagnosticArray, "/diagnostics", diagnosed, 10)
    threading.Thread(target=listen, daemon=True).start()
    rclpy.spin(node)


main()
