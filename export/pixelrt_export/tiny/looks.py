"""How scenes look and what is asked about them: the look of release 0.1, and the one that follows it.

FLAT is what `checkpoints/pixellm-tiny` was trained on: it stays as it is, pixel for pixel, until both models are
trained on SHADED, and is deleted then (with `flat_scenes.py` and all that takes a look).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """trained, held_out: photographs behind training scenes, and those only seen in evaluation.

    questions: kind of a PixelLM question -> how often it is drawn; expressions: kind of a PSALM sentence -> how
    often it is drawn, where a scene allows it.
    """

    name: str
    trained: tuple[str, ...]
    held_out: tuple[str, ...]
    questions: Mapping[str, float]
    expressions: Mapping[str, float]
    videos: bool = False

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Of an evaluation: name -> photographs."""
        return {"held-out seeds": self.trained, "held-out backgrounds": self.held_out}


FLAT = Look(
    name="flat",
    trained=(
        "astronaut.png",
        "chelsea.png",
        "hubble_deep_field.jpg",
        "retina.jpg",
        "brick.png",
        "gravel.png",
        "camera.png",
        "coins.png",
        "cell.png",
    ),
    held_out=("coffee.png", "grass.png", "ihc.png"),
    questions={"named": 0.36, "pair": 0.26, "texture": 0.19, "refusal": 0.19},
    expressions={
        "name": 0.42,
        "texture": 0.12,
        "shape": 0.1,
        "colour": 0.08,
        "side": 0.12,
        "size": 0.04,
        "several": 0.08,
        "none": 0.04,
    },
)

SHADED = Look(
    name="shaded",
    trained=(
        "acanthus.jpg",
        "aeroplane.jpg",
        "alps.jpg",
        "astronaut.jpg",
        "autumn_meadow.jpg",
        "black_canyon.jpg",
        "brick.jpg",
        "car_park.jpg",
        "cat.jpg",
        "cellar.jpg",
        "cork.jpg",
        "courtyard.jpg",
        "dandelions.jpg",
        "dogs.jpg",
        "field.jpg",
        "forest.jpg",
        "galaxies.jpg",
        "gravel.jpg",
        "hall.jpg",
        "harbour.jpg",
        "hilltop.jpg",
        "laboratory.jpg",
        "lobby.jpg",
        "pagoda.jpg",
        "pastel_paper.jpg",
        "photographer.jpg",
        "square.jpg",
        "stream.jpg",
        "walking_cat.jpg",
    ),
    held_out=(
        "bedroom.jpg",
        "dahlia.jpg",
        "farmhouse.jpg",
        "grass.jpg",
        "mountain_path.jpg",
        "quay.jpg",
        "raccoon.jpg",
        "sheep.jpg",
        "veined_paper.jpg",
        "workshop.jpg",
    ),
    # The first four, on which all others rest, are nearly half of the questions. Only a third of the scenes allow a
    # relation, so that about one question in twenty is one.
    questions={
        "named": 0.14,
        "pair": 0.13,
        "texture": 0.08,
        "refusal": 0.1,
        "several": 0.05,
        "group": 0.07,
        "size": 0.06,
        "side": 0.06,
        "relation": 0.13,
        "count": 0.08,
        "colour": 0.06,
        "unknown": 0.04,
    },
    expressions={
        "name": 0.3,
        "texture": 0.1,
        "shape": 0.08,
        "colour": 0.07,
        "side": 0.11,
        "size": 0.08,
        "relation": 0.12,
        "several": 0.08,
        "none": 0.06,
    },
    videos=True,
)

LOOKS = {look.name: look for look in (FLAT, SHADED)}
