"""One question about one picture: prints the answer, writes the overlay.

python examples/one_picture.py [BUNDLE] [IMAGE] [QUESTION]
"""

import sys
from pathlib import Path

import pixelrt
from pixelrt.overlay import draw

here = Path(__file__).resolve().parents[1]
given = dict(enumerate(sys.argv))
bundle = given.get(1, here / "bundles" / "pixellm-tiny")
image = given.get(2, here / "calib_data" / "scene_01.png")
question = given.get(3, "Segment the red circle and the blue star.")

seg = pixelrt.load(bundle)
frame = seg.encode(image)
answer = seg.segment(frame, question)

print(answer.text)
for mask in answer.masks:
    print(f"{mask.label}: {mask.area} px in {mask.box}, score {mask.score:.2f}")  # mask.mask is (H, W) bool
draw(frame.image, answer.masks, question, answer.text).save("overlay.png")
print("wrote overlay.png")
