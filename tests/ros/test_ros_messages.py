"""Answers as messages, made of the classes of rosbags and read back from their bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pixelrt.errors import InputError
from pixelrt.masks import Mask
from pixelrt.ros import messages
from pixelrt.ros.images import picture_of
from pixelrt_kernels.upsample_mask.reference import box_of

pytest.importorskip("rosbags", reason="rosbags is not installed (extra bag)")

from pixelrt.bag.recording import maker_of, written_types

TYPES = written_types()
MAKER = maker_of(TYPES)
HEADER = MAKER.make(
    "std_msgs/msg/Header", stamp=MAKER.make("builtin_interfaces/msg/Time", sec=3, nanosec=14), frame_id="eye"
)
SIZE = (6, 9)


def mask(rows: slice, columns: slice, label: str = "", score: float = 0.5) -> Mask:
    bits = np.zeros(SIZE, bool)
    bits[rows, columns] = True
    box = box_of(bits) if bits.any() else None
    return Mask(bits, score, label, None, box, np.zeros((1, 1), np.float32))


def through_bytes(message: Any) -> Any:
    kind = message.__msgtype__
    return TYPES.deserialize_cdr(TYPES.serialize_cdr(message, kind), kind)


def test_the_smaller_mask_lies_on_top_whatever_the_order() -> None:
    large, small = mask(slice(0, 6), slice(0, 8)), mask(slice(2, 4), slice(3, 5))
    for masks, numbers in (([large, small], [1, 2]), ([small, large], [2, 1])):
        drawn = messages.label_map(masks, numbers, SIZE, most=2)
        assert drawn.dtype == np.uint8
        assert (drawn[2:4, 3:5] == 2).all() and (drawn[:, 8] == 0).all()
        assert (drawn == 1).sum() == 48 - 4


@pytest.mark.parametrize(
    ("most", "encoding"), [(0, "mono8"), (254, "mono8"), (255, "mono16"), (65534, "mono16")]
)
def test_label_map_in_8_or_16_bits(most: int, encoding: str) -> None:
    drawn = messages.label_map(
        [mask(slice(1, 3), slice(1, 2))] if most else [], [most] * bool(most), SIZE, most
    )
    message = through_bytes(messages.image_message(MAKER, HEADER, drawn))
    assert (message.encoding, message.height, message.width) == (encoding, *SIZE)
    assert message.step == SIZE[1] * (1 if encoding == "mono8" else 2) and message.is_bigendian == 0
    read = message.data.view("<u1" if encoding == "mono8" else "<u2").reshape(SIZE)
    np.testing.assert_array_equal(read, drawn)
    assert message.header == HEADER


def test_an_overlay_comes_back() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    np.testing.assert_array_equal(picture_of(through_bytes(messages.image_message(MAKER, HEADER, rgb))), rgb)


def test_detections() -> None:
    masks = [
        mask(slice(1, 3), slice(2, 7), "mug", 0.75),
        mask(slice(0, 0), slice(0, 0), "nothing"),
        mask(slice(0, 1), slice(0, 1), "dot", 0.25),
    ]
    message = through_bytes(messages.detections_message(MAKER, HEADER, masks, [4, 5, 6]))
    mug, dot = message.detections
    assert (mug.id, dot.id) == ("1", "3")
    assert (mug.bbox.center.position.x, mug.bbox.center.position.y, mug.bbox.center.theta) == (4.5, 2.0, 0.0)
    assert (mug.bbox.size_x, mug.bbox.size_y) == (5.0, 2.0)
    assert (dot.bbox.center.position.x, dot.bbox.size_x) == (0.5, 1.0)
    found = [(d.results[0].hypothesis.class_id, d.results[0].hypothesis.score) for d in (mug, dot)]
    assert found == [("4", 0.75), ("6", 0.25)]
    assert mug.header == dot.header == message.header == HEADER


def test_label_info() -> None:
    message = through_bytes(messages.label_info_message(MAKER, HEADER, {2: "book", 1: "mug"}))
    assert [(entry.class_id, entry.class_name) for entry in message.class_map] == [(1, "mug"), (2, "book")]


def test_numbers_of_classes_and_of_instances() -> None:
    mugs = [mask(slice(0, 1), slice(i, i + 1), label) for i, label in enumerate(["mug", "book", "mug", ""])]
    classes = messages.Numbering("class")
    assert classes(mugs[1:]) == ([1, 2, 3], {1: "book", 2: "mug", 3: "object"})
    assert classes(mugs) == ([2, 1, 2, 3], {1: "book", 2: "mug", 3: "object"})
    assert messages.Numbering("class", ["cup", "mug"])(mugs[:1]) == ([2], {1: "cup", 2: "mug"})
    instances = messages.Numbering("instance")
    assert instances(mugs) == ([1, 2, 3, 4], {1: "mug", 2: "book", 3: "mug", 4: "object"})
    assert instances([]) == ([], {})
    with pytest.raises(InputError, match="'pixel'"):
        messages.Numbering("pixel")


def test_more_labels_than_16_bits_hold() -> None:
    full = messages.Numbering("class", [str(i) for i in range(messages.LARGEST)])
    with pytest.raises(InputError, match="more than 65,534 labels"):
        full([mask(slice(0, 1), slice(0, 1), "one more")])
