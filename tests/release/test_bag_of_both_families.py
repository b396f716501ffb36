"""`pixelrt bag` with the shipped models: what is in the file is what they answer in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest
from click.testing import CliRunner
from pixelrt.cli import main
from pixelrt.image import open_image

pytest.importorskip("rosbags", reason="rosbags is not installed (extra bag)")

from pixelrt.bag.recording import opened, written_types
from rosbags.rosbag2 import StoragePlugin, Writer

TOPIC, PROMPT = "/camera/image_raw", "Segment the red circle and the blue star."
START_NS, STEP_NS = 10**18, 10**8


@pytest.fixture(scope="module")
def pictures(samples: list[tuple[Path, str]]) -> list[np.ndarray]:
    return [open_image(path) for path, _ in samples[:2]]


@pytest.fixture(scope="module")
def recording(pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a folder, the way ros2 bag writes."""
    types = written_types()
    folder = tmp_path_factory.mktemp("bags") / "drive"
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection(TOPIC, "sensor_msgs/msg/Image", typestore=types)
        for number, rgb in enumerate(pictures):
            made: Any = types.types
            header = made["std_msgs/msg/Header"](made["builtin_interfaces/msg/Time"](number, 0), "camera")
            height, width = rgb.shape[:2]
            image = made["sensor_msgs/msg/Image"](
                header, height, width, "rgb8", 0, 3 * width, rgb.reshape(-1)
            )
            writer.write(
                connection, START_NS + number * STEP_NS, types.serialize_cdr(image, connection.msgtype)
            )
    return folder


@pytest.mark.parametrize("family", ["pixellm", "psalm"])
def test_as_in_this_process(
    family: str, root: Path, recording: Path, pictures: list[np.ndarray], class_names: list[str],
    tmp_path: Path, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    bundle = request.getfixturevalue("tiny_bundle" if family == "pixellm" else "psalm_bundle")
    out = tmp_path / "out.mcap"
    classes = root / "calib_data" / "classes.txt"
    asked = ["--prompt", PROMPT] if family == "pixellm" else ["--task", "panoptic", "--classes", str(classes)]
    query: Any = PROMPT if family == "pixellm" else pixelrt.Classes(class_names)
    done = CliRunner().invoke(main, ["bag", str(bundle), str(recording), str(out), *asked])
    assert done.exit_code == 0, done.output
    segmenter = pixelrt.load(bundle)
    with opened(out) as read:
        info = [read.message(c, data) for c, _, data in read.messages("/pixelrt/label_info")][-1]
        number_of = {entry.class_name: entry.class_id for entry in info.class_map}
        maps = [(at, read.message(c, data)) for c, at, data in read.messages("/pixelrt/label_map")]
    assert len(maps) == len(pictures)
    for number, (at, message) in enumerate(maps):
        assert (at, message.header.stamp.sec) == (START_NS + number * STEP_NS, number)
        want = np.zeros(pictures[number].shape[:2], np.uint8)
        masks = list(segmenter.segment(pictures[number], query).masks)
        assert masks
        for mask in sorted(masks, key=lambda mask: -mask.area):
            want[mask.mask] = number_of[mask.label]
        np.testing.assert_array_equal(message.data.reshape(want.shape), want)
