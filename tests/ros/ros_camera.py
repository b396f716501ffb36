"""A camera for test_ros.py, in a process of its own: the pictures given in turn, their number as seconds of the stamp.

Lines on stdin: `prompt TEXT` publishes a question, `set NAME TEXT` sets a parameter of the node, `state` says its
state, `transition ID` changes it. Each gets a line of JSON on stdout.
"""

from __future__ import annotations

import array
import json
import sys
import threading

import numpy as np
import rclpy
from lifecycle_msgs.srv import ChangeState, GetState
from PIL import Image as Picture
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from sensor_msgs.msg import Image
from std_msgs.msg import String

PERIOD_S = 0.2


def image(number: int, pictures: list[np.ndarray]) -> Image:
    """bgr8 with 5 bytes behind each row."""
    rgb = pictures[number % len(pictures)]
    rows = np.zeros((rgb.shape[0], 3 * rgb.shape[1] + 5), np.uint8)
    rows[:, : 3 * rgb.shape[1]] = rgb[..., ::-1].reshape(rgb.shape[0], -1)
    message = Image(height=rgb.shape[0], width=rgb.shape[1], encoding="bgr8", step=rows.shape[1])
    message.data = array.array("B", rows.tobytes())
    message.header.stamp.sec, message.header.frame_id = number, "camera"
    return message


def main() -> None:
    rclpy.init()
    node = rclpy.create_node("camera")
    publisher = node.create_publisher(Image, "/camera/image_raw", 1)
    prompts = node.create_publisher(String, "/prompt", 1)
    parameters = AsyncParameterClient(node, "/pixelrt")
    states = node.create_client(GetState, "/pixelrt/get_state")
    changes = node.create_client(ChangeState, "/pixelrt/change_state")
    pictures = [np.asarray(Picture.open(path).convert("RGB")) for path in sys.argv[1:]]
    count = 0

    def shoot() -> None:
        nonlocal count
        publisher.publish(image(count, pictures))
        count += 1

    def say(result: object) -> None:
        print(json.dumps(result), flush=True)

    def listen() -> None:
        for line in sys.stdin:
            what, _, rest = line.rstrip("\n").partition(" ")
            if what == "prompt":
                prompts.publish(String(data=rest))
                say("published")
            elif what == "set":
                name, _, text = rest.partition(" ")
                asked = parameters.set_parameters([Parameter(name, value=text)])
                asked.add_done_callback(lambda done: say([r.reason for r in done.result().results]))
            elif what == "transition":
                wanted = ChangeState.Request()
                wanted.transition.id = int(rest)
                changes.call_async(wanted).add_done_callback(lambda done: say([done.result().success]))
            elif what == "state":
                states.call_async(GetState.Request()).add_done_callback(
                    lambda done: say(done.result().current_state.label)
                )

    node.create_timer(PERIOD_S, shoot)
    threading.Thread(target=listen, daemon=True).start()
    rclpy.spin(node)


main()
