"""pixelrt: text and an image in, answer text and pixel masks out; no torch.

seg = pixelrt.load("bundles/pixellm-tiny")
frame = seg.encode("picture.png")                 # once per image
answer = seg.segment(frame, "Segment the mug.")   # as often as there are questions
"""

from pixelrt.errors import InputError, MissingExtra
from pixelrt.masks import Answer, Mask
from pixelrt.queries import Classes, Refer, Regions, Track
from pixelrt.segmenter import Frame, Segmenter, load, record

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Classes",
    "Frame",
    "InputError",
    "Mask",
    "MissingExtra",
    "Refer",
    "Regions",
    "Segmenter",
    "Track",
    "__version__",
    "load",
    "record",
]
