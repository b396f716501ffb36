"""Many questions about one picture: the picture is encoded once.

python examples/many_questions.py [BUNDLE] [IMAGE]
"""

import sys
from pathlib import Path

import pixelrt

QUESTIONS = [
    "Segment the red circle.",
    "Where is the blue star? Please respond with segmentation mask.",
    "Find the dotted shapes in the image.",
    "Show me the green square.",
]

here = Path(__file__).resolve().parents[1]
given = dict(enumerate(sys.argv))
seg = pixelrt.load(given.get(1, here / "bundles" / "pixellm-tiny"))
frame = seg.encode(given.get(2, here / "calib_data" / "scene_01.png"))
print(f"image and encoder: {sum(frame.timing.values()):.0f} ms, once")

for question in QUESTIONS:
    answer = seg.segment(frame, question)
    spent_ms = sum(answer.timing.values())
    print(f"{spent_ms:5.0f} ms  {question}  ->  {answer.text}")
