"""A question about what a camera sees now, again and again; the newest picture counts, older ones are dropped.

python examples/camera.py [BUNDLE] [SOURCE] [QUESTION] [EVERY]

SOURCE: a camera (/dev/video0), a video file, or a folder of pictures played at 30 a second. EVERY: frames from one
question to the next, with its objects followed in between (docs/video.md); 0 asks about each frame.
"""

import sys
import threading
import time
from pathlib import Path

import pixelrt
from pixelrt.frames import read_frames
from pixelrt.pipeline import Pipeline
from pixelrt.tracking import Tracking

here = Path(__file__).resolve().parents[1]
given = dict(enumerate(sys.argv))
seg = pixelrt.load(given.get(1, here / "bundles" / "pixellm-tiny"))
source = Path(given.get(2, here / "calib_data"))
question = given.get(3, "Segment the striped shapes.")
every = int(given.get(4, 0))


def watch(pipeline: Pipeline) -> None:
    for name, picture in read_frames(source):
        pipeline.put(picture, tag=name)
        if not source.is_char_device():  # a camera has a clock of its own
            time.sleep(1 / 30)
    pipeline.close(drain=True)


with Pipeline(seg, Tracking(seg, question, every) if every else question) as pipeline:
    threading.Thread(target=watch, args=(pipeline,), daemon=True).start()
    for seen in pipeline:
        masks = seen.error or [f"{mask.label} {mask.box}" for mask in seen.answer.masks]
        print(f"{seen.tag}  {seen.latency_ms:.0f} ms  {'asked' if seen.asked else '     '}  {masks}")
    print(
        f"{pipeline.answered} answered, {pipeline.dropped} dropped for newer ones, {pipeline.failed} failed"
    )
