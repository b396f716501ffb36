"""`pixelrt bag`: a recording written by rosbags, processed, and read back by the MCAP library itself."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pixelrt
import pytest
from click.testing import CliRunner, Result
from coloured import FRAME, HEIGHT, WIDTH, Coloured, picture
from PIL import Image
from pixelrt.cli import main

pytest.importorskip("rosbags", reason="rosbags is not installed (extra bag)")
reader = pytest.importorskip("mcap.reader", reason="mcap is not installed (extra dev)")
decoder = pytest.importorskip("mcap_ros2.decoder", reason="mcap-ros2-support is not installed (extra dev)")

from pixelrt.bag import recording as bags  # noqa: E402
from rosbags.rosbag2 import StoragePlugin, Writer  # noqa: E402

COUNT = 100
START_NS, STEP_NS = 1_700_000_000_123_456_789, 33_333_333
RAW, COMPRESSED, OTHER = "/camera/image_raw", "/camera/image_raw/compressed", "/odometry_text"
ADDED = ("/pixelrt/label_map", "/pixelrt/detections", "/pixelrt/label_info")
HERE = Path(__file__).resolve().parent


def stamp(store: Any, number: int) -> Any:
    """The camera's clock: before the recorder's."""
    time_ns = START_NS + number * STEP_NS - 5_000_000
    sec, nanosec = divmod(time_ns, 10**9)
    return store.types["std_msgs/msg/Header"](store.types["builtin_interfaces/msg/Time"](sec, nanosec), FRAME)


def image(store: Any, number: int) -> Any:
    """bgr8, with rows that are longer than their pixels."""
    step = 3 * WIDTH + 4
    rows = np.zeros((HEIGHT, step), np.uint8)
    rows[:, : 3 * WIDTH] = picture(number)[..., ::-1].reshape(HEIGHT, -1)
    header = stamp(store, number)
    return store.types["sensor_msgs/msg/Image"](header, HEIGHT, WIDTH, "bgr8", 0, step, rows.reshape(-1))


def compressed(store: Any, number: int) -> Any:
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "PNG")
    data = np.frombuffer(file.getvalue(), np.uint8)
    if number == 3:
        data = data[: len(data) // 2]
    return store.types["sensor_msgs/msg/CompressedImage"](stamp(store, number), "png", data)


def text(store: Any, number: int) -> Any:
    return store.types["std_msgs/msg/String"](f"step {number}")


MAKERS = {
    RAW: ("sensor_msgs/msg/Image", image),
    COMPRESSED: ("sensor_msgs/msg/CompressedImage", compressed),
    OTHER: ("std_msgs/msg/String", text),
}


def written(path: Path, topics: tuple[str, ...], count: int, folder: bool = False) -> Path:
    """A recording of `count` messages on each topic. folder: as rosbag2's, else its MCAP file alone."""
    store = bags.written_types()
    with Writer(path.with_suffix(""), version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = [writer.add_connection(t, MAKERS[t][0], typestore=store) for t in topics]
        for number in range(count):
            for connection in connections:
                kind, maker = MAKERS[connection.topic]
                data = store.serialize_cdr(maker(store, number), kind)
                writer.write(connection, START_NS + number * STEP_NS, data)
    if folder:
        return path.with_suffix("")
    (path.with_suffix("") / path.name).rename(path)
    shutil.rmtree(path.with_suffix(""))
    return path


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("bags") / "in.mcap", (RAW, OTHER), COUNT)


@pytest.fixture
def segmenter(monkeypatch: pytest.MonkeyPatch) -> Coloured:
    made = Coloured()
    monkeypatch.setattr(pixelrt, "load", lambda path, backend="auto", progress=None: made)
    return made


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bag", *map(str, arguments)], prog_name="pixelrt")


def read(path: Path, topic: str | None = None) -> list[tuple[str, int, Any]]:
    """(topic, log time, message) by the MCAP library, which knows no more than what is in the file."""
    with path.open("rb") as file:
        opened = reader.make_reader(file, validate_crcs=True, decoder_factories=[decoder.DecoderFactory()])
        found = opened.iter_decoded_messages(topics=topic and [topic])
        return [(channel.topic, message.log_time, decoded) for _, channel, message, decoded in found]


def header_ns(message: Any) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def test_a_hundred_images(hundred: Path, segmenter: Coloured, tmp_path: Path) -> None:
    out = tmp_path / "out.mcap"
    done = run("bundle", hundred, out, "--prompt", "Segment the box.")
    assert done.exit_code == 0, done.output
    assert f"{COUNT} images of {RAW}" in done.output and "ros2 bag info" in done.output
    maps, found, infos = (read(out, topic) for topic in ADDED)
    assert len(maps) == len(found) == COUNT and len(infos) == 2  # "blue" comes with the second image
    assert [message.class_name for message in infos[-1][2].class_map] == ["red box", "blue box"]
    for number, ((_, at, drawn), (_, also_at, boxes)) in enumerate(zip(maps, found, strict=True)):
        assert at == also_at == START_NS + number * STEP_NS
        assert header_ns(drawn) == header_ns(boxes) == START_NS + number * STEP_NS - 5_000_000
        assert drawn.header.frame_id == FRAME and drawn.encoding == "mono8"
        masks = Coloured().segment(picture(number), "the box").masks
        want = np.zeros((HEIGHT, WIDTH), np.uint8)
        for mask in masks:
            want[mask.mask] = 1 if mask.label == "red box" else 2
        np.testing.assert_array_equal(np.frombuffer(drawn.data, np.uint8).reshape(HEIGHT, WIDTH), want)
        for mask, box in zip(masks, boxes.detections, strict=True):
            x0, y0, x1, y1 = mask.box
            assert (box.bbox.center.position.x, box.bbox.center.position.y) == ((x0 + x1) / 2, (y0 + y1) / 2)
            assert (box.bbox.size_x, box.bbox.size_y) == (x1 - x0, y1 - y0)
            assert box.results[0].hypothesis.score == mask.score
            assert box.results[0].hypothesis.class_id == ("1" if mask.label == "red box" else "2")
            assert header_ns(box) == header_ns(boxes)


def test_everything_else_is_copied(hundred: Path, segmenter: Coloured, tmp_path: Path) -> None:
    out = tmp_path / "out.mcap"
    assert run("bundle", hundred, out, "--prompt", "Segment the box.").exit_code == 0

    def raw(path: Path) -> Iterator[tuple[Any, ...]]:
        with path.open("rb") as file:
            for schema, channel, message in reader.make_reader(file).iter_messages():
                if channel.topic not in ADDED:
                    yield channel.topic, schema.name, schema.data, message.log_time, message.data

    assert list(raw(out)) == list(raw(hundred))


def test_the_answer_follows_its_image(hundred: Path, segmenter: Coloured, tmp_path: Path) -> None:
    out = tmp_path / "out.mcap"
    assert run("bundle", hundred, out, "--prompt", "Segment the box.").exit_code == 0
    order = [topic for topic, _, _ in read(out)]
    assert order[:5] == [RAW, ADDED[2], ADDED[0], ADDED[1], OTHER]


KILLED = """
import sys, pixelrt
from coloured import Coloured
made = Coloured(delay_s=float(sys.argv.pop(1)))
pixelrt.load = lambda path, backend="auto", progress=None: made
from pixelrt.cli import main
main()
"""


def test_killed_halfway_and_resumed(hundred: Path, segmenter: Coloured, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole" / "out.mcap", tmp_path / "out.mcap"
    question = ("--prompt", "Segment the box.")
    assert run("bundle", hundred, whole, *question).exit_code == 0
    path = os.pathsep.join([str(HERE), *(str(HERE.parents[1] / name) for name in ("runtime", "kernels"))])
    command = [sys.executable, "-c", KILLED, "0.01", "bag", "bundle", hundred, out, *question]
    process = subprocess.Popen(
        [str(part) for part in command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])},
        stderr=subprocess.PIPE,
    )
    journal = tmp_path / "out.mcap.journal"
    while not (journal.exists() and journal.read_bytes().count(b"\n") > COUNT // 2):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    known = journal.read_bytes().count(b"\n") - 1
    assert known < COUNT and not out.exists()
    with journal.open("ab") as file:  # and the line it was at, unfinished
        file.write(b'{"size": [33, 4')
    segmenter.asked.clear()
    done = run("bundle", hundred, out, *question)
    assert done.exit_code == 0, done.output
    assert f"went on behind image {known}" in done.output
    assert len(segmenter.asked) == COUNT - known
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.mcap", "whole"]


def test_a_journal_of_another_question(hundred: Path, segmenter: Coloured, tmp_path: Path) -> None:
    small = written(tmp_path / "in.mcap", (RAW,), 3)
    out, journal = tmp_path / "out.mcap", tmp_path / "out.mcap.journal"
    journal.write_text('{"pixelrt_bag": 1, "bundle": "another"}\n')
    refused = run("bundle", small, out, "--prompt", "Segment the box.")
    assert refused.exit_code == 2 and "was made with another bundle" in refused.output
    assert run("bundle", small, out, "--prompt", "Segment the box.", "--restart").exit_code == 0


def test_instances_are_numbered_anew_in_each_image(segmenter: Coloured, tmp_path: Path) -> None:
    small = written(tmp_path / "in.mcap", (RAW,), 2, folder=True)
    out = tmp_path / "out.mcap"
    done = run("bundle", small, out, "--prompt", "the box", "--numbers", "instance", "--prefix", "/a/b")
    assert done.exit_code == 0, done.output
    names = [[entry.class_name for entry in info.class_map] for _, _, info in read(out, "/a/b/label_info")]
    assert names == [["red box"], ["red box", "blue box"]]


def test_compressed_images_and_a_damaged_one(segmenter: Coloured, tmp_path: Path) -> None:
    source = written(tmp_path / "in.mcap", (RAW, COMPRESSED), 6)
    out = tmp_path / "out.mcap"
    refused = run("bundle", source, out, "--prompt", "the box")
    assert refused.exit_code == 2
    assert f"has 2 image topics: {RAW} (6), {COMPRESSED} (6). Choose one: --topic" in refused.output
    done = run("bundle", source, out, "--prompt", "the box", "--topic", COMPRESSED)
    assert done.exit_code == 0, done.output
    assert "1 images could not be read" in done.output and "damaged or truncated" in done.output
    times = [at for _, at, _ in read(out, ADDED[0])]
    assert times == [START_NS + number * STEP_NS for number in (0, 1, 2, 4, 5)]


def test_classes_are_known_beforehand(segmenter: Coloured, tmp_path: Path) -> None:
    source = written(tmp_path / "in.mcap", (RAW,), 2)
    out, names = tmp_path / "out.mcap", tmp_path / "names.txt"
    names.write_text("sky\nblue box\nred box\n")
    segmenter.segment = lambda frame, query, max_new_tokens: Coloured().segment(frame, "box")  # type: ignore[method-assign]
    done = run("bundle", source, out, "--task", "semantic", "--classes", names)
    assert done.exit_code == 0, done.output
    ((_, _, info),) = read(out, ADDED[2])
    assert [entry.class_name for entry in info.class_map] == ["sky", "blue box", "red box"]
    assert set(read(out, ADDED[0])[0][2].data) == {0, 3}


def test_bad_input(hundred: Path, segmenter: Coloured, tmp_path: Path) -> None:
    ask = ("--prompt", "Segment the box.")
    out = tmp_path / "out.mcap"
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(hundred.read_bytes()[:5000])
    (tmp_path / "empty").mkdir()
    no_images = written(tmp_path / "no_images.mcap", (OTHER,), 2)
    for source, target, more, says in [
        (tmp_path / "none.mcap", out, ask, "does not exist"),
        (tmp_path / "empty", out, ask, "without metadata.yaml"),
        (HERE / "coloured.py", out, ask, "is not a recording"),
        (cut, out, ask, "cannot be read"),
        (no_images, out, ask, f"this one's topics: {OTHER}"),
        (hundred, out, (), "no question was given"),
        (hundred, out, ("--prompt", " "), "the prompt is empty"),
        (hundred, out, (*ask, "--topic", "/nowhere"), "has no messages on /nowhere"),
        (hundred, out, (*ask, "--topic", OTHER), f"has std_msgs/msg/String on {OTHER}, no images"),
        (hundred, tmp_path / "out.bag", ask, "Give a name that ends with .mcap"),
        (hundred, hundred, ask, "exists already"),
        (hundred, out, (*ask, "--prefix", "a b"), "is no name of a topic"),
        (hundred, out, ("--task", "interactive", "--point", "1,2"), "move from image to image"),
    ]:
        refused = run("bundle", source, target, *more)
        assert refused.exit_code == 2 and says in refused.output.replace("\n", " "), (says, refused.output)
        assert len(refused.output.splitlines()) == 1 and not out.exists()
    old = tmp_path / "old.bag"
    old.write_bytes(b"#ROSBAG V2.0\n")
    assert "rosbags-convert" in run("bundle", old, out, *ask).output
    twice = tmp_path / "twice.mcap"
    assert run("bundle", hundred, twice, *ask).exit_code == 0
    assert (
        "already has the topic /pixelrt/label_map" in run("bundle", twice, out, *ask, "--topic", RAW).output
    )
