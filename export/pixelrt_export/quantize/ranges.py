"""What one int8 step of a layer's input is worth, from pictures.

The step with the least squared error over all pictures, among those that reach 1, 0.9, … of the largest value
seen: a few far values would else set the steps of all the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from pixelrt_export.quantize.probe import Probe

CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


def input_steps(
    probe: Probe,
    pictures: Sequence[Mapping[str, np.ndarray]],
    chosen: Iterable[str],
    progress: Callable[[str, float, float], None] = lambda what, done, total: None,
) -> dict[str, float]:
    """Linear layer -> step. pictures: inputs of the graph, gone through twice."""
    places = {name: probe.products[name] for name in chosen}
    largest = dict.fromkeys(places.values(), 0.0)
    for number, inputs in enumerate(pictures, start=1):
        found = probe(inputs)
        for place in largest:
            largest[place] = max(largest[place], float(np.abs(found[place]).max()))
        progress("pictures encoded", number, 2 * len(pictures))
    errors = {place: np.zeros(len(CLIPS)) for place in largest}
    for number, inputs in enumerate(pictures, start=1 + len(pictures)):
        found = probe(inputs)
        for place, sums in errors.items():
            x = found[place]
            for i, clip in enumerate(CLIPS):
                step = np.float32(clip * largest[place] / 127 or 1.0)
                sums[i] += np.square(np.clip(np.rint(x / step), -128, 127) * step - x).sum(dtype=np.float64)
        progress("pictures encoded", number, 2 * len(pictures))
    steps = {place: CLIPS[int(np.argmin(sums))] * largest[place] / 127 for place, sums in errors.items()}
    return {name: steps[place] for name, place in places.items()}
