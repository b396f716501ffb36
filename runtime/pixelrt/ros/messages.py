"""An answer as messages: label map, detections, and what the numbers in them mean.

label map    sensor_msgs/Image, mono8, or mono16 from 255 numbers on: the number of each pixel, 0 where there is nothing
detections   vision_msgs/Detection2DArray (vision_msgs 4, ROS 2 Humble and later): a box and a score for each mask
label info   vision_msgs/LabelInfo: number -> name

Each carries the header of the picture it was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import InputError
from pixelrt.masks import Mask
from pixelrt.ros.images import IMAGE

DETECTIONS, LABEL_INFO = "vision_msgs/msg/Detection2DArray", "vision_msgs/msg/LabelInfo"
NUMBERINGS = ("class", "instance")
UNNAMED = "object"  # a mask with no words before it
# LabelInfo.msg: the largest number of a type, 255 or 65535, means "unlabeled".
LARGEST_8, LARGEST = 2**8 - 2, 2**16 - 2

Numbers = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Maker:
    """How one library makes messages. make: type name and all its fields -> message. octets: bytes for a uint8[]."""

    make: Callable[..., Any]
    octets: Callable[[NDArray[np.uint8]], Any]


class Numbering:
    """Which number a mask has in the label map.

    `class`: one for each label, in the order in which labels first came; it stays while the question does. `instance`:
    the mask's place in its answer, from 1.
    """

    def __init__(self, how: str = "class", names: Iterable[str] = ()) -> None:
        """names: labels known beforehand, numbered from 1. Raises InputError for another `how`."""
        if how not in NUMBERINGS:
            raise InputError(
                f"the numbers of the label map are {how!r}. Choose one of: {', '.join(NUMBERINGS)}."
            )
        self.how, self._of = how, {name: number for number, name in enumerate(names, start=1)}

    def __call__(self, masks: Sequence[Mask]) -> tuple[list[int], dict[int, str]]:
        """The number of each mask, and the name of each number."""
        labels = [mask.label or UNNAMED for mask in masks]
        if self.how == "instance":
            numbers = list(range(1, len(labels) + 1))
            names = dict(enumerate(labels, start=1))
        else:
            numbers = [self._of.setdefault(label, len(self._of) + 1) for label in labels]
            names = {number: label for label, number in self._of.items()}
        if max(names, default=0) > LARGEST:
            raise InputError(
                f"there are more than {LARGEST:,} labels. Ask the question anew, or another one."
            )
        return numbers, names


def label_map(masks: Sequence[Mask], numbers: Sequence[int], size: tuple[int, int], most: int) -> Numbers:
    """(H, W): the number of the mask at each pixel; where masks overlap, of the smallest. most: largest number."""
    drawn: Numbers = np.zeros(size, np.uint8 if most <= LARGEST_8 else np.uint16)
    bits = [mask.mask for mask in masks]
    # Stable: of equally large ones the later lies on top.
    for place in sorted(range(len(bits)), key=lambda i: -int(np.count_nonzero(bits[i]))):
        drawn[bits[place]] = numbers[place]
    return drawn


def image_message(maker: Maker, header: Any, pixels: NDArray[Any]) -> Any:
    """uint8 (H, W) as mono8, uint16 as mono16 (little-endian), uint8 (H, W, 3) as rgb8."""
    encoding = "rgb8" if pixels.ndim == 3 else "mono8" if pixels.dtype == np.uint8 else "mono16"
    little = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False))
    octets = little.view(np.uint8).reshape(-1)
    return maker.make(
        IMAGE,
        header=header,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=octets.size // pixels.shape[0],
        data=maker.octets(octets),
    )


def detections_message(maker: Maker, header: Any, masks: Sequence[Mask], numbers: Sequence[int]) -> Any:
    """A detection for each mask that has pixels. `id`: its place in the answer, from 1; `class_id`: its number.

    Centre and size of the box are in pixels, its edges between pixels: a mask of the pixel (0, 0) alone has its
    centre at 0.5, 0.5 and size 1.
    """
    found = [
        _detection(maker, header, place, number, mask)
        for place, (mask, number) in enumerate(zip(masks, numbers, strict=True), start=1)
        if mask.box is not None
    ]
    return maker.make(DETECTIONS, header=header, detections=found)


def label_info_message(maker: Maker, header: Any, names: dict[int, str]) -> Any:
    entries = [
        maker.make("vision_msgs/msg/VisionClass", class_id=number, class_name=names[number])
        for number in sorted(names)
    ]
    # threshold: all that is in the label map is meant, whatever its score.
    return maker.make(LABEL_INFO, header=header, class_map=entries, threshold=0.0)


def _detection(maker: Maker, header: Any, place: int, number: int, mask: Mask) -> Any:
    assert mask.box is not None
    x0, y0, x1, y1 = mask.box
    hypothesis = maker.make("vision_msgs/msg/ObjectHypothesis", class_id=str(number), score=float(mask.score))
    centre = maker.make(
        "vision_msgs/msg/Pose2D",
        position=maker.make("vision_msgs/msg/Point2D", x=(x0 + x1) / 2, y=(y0 + y1) / 2),
        theta=0.0,
    )
    return maker.make(
        "vision_msgs/msg/Detection2D",
        header=header,
        results=[
            maker.make(
                "vision_msgs/msg/ObjectHypothesisWithPose", hypothesis=hypothesis, pose=_no_pose(maker)
            )
        ],
        bbox=maker.make(
            "vision_msgs/msg/BoundingBox2D", center=centre, size_x=float(x1 - x0), size_y=float(y1 - y0)
        ),
        id=str(place),
    )


def _no_pose(maker: Maker) -> Any:
    """A PoseWithCovariance that says nothing: where the object is in space is not known."""
    zero = maker.make("geometry_msgs/msg/Point", x=0.0, y=0.0, z=0.0)
    upright = maker.make("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0)
    pose = maker.make("geometry_msgs/msg/Pose", position=zero, orientation=upright)
    return maker.make("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=np.zeros(36))
