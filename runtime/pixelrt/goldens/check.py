"""A loaded bundle against its golden outputs, stage by stage: `check` names the first stage that differs.

encoder, language, pixel_decoder   each graph alone, given golden inputs; the pixel decoder gets this machine's own
                                   picture features, so its limit is the encoder's and its own together
answer                             `segment` as a whole, twice: tokens, and masks before they are enlarged
masks                              enlarged masks, against numpy's reference on the same logits
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pixelrt_kernels.upsample_mask import reference

from pixelrt.engine import Array, Engine, Joined, Value
from pixelrt.errors import InputError
from pixelrt.goldens.file import Goldens, read_goldens
from pixelrt.goldens.limits import PIXELS, STAGES, TIES, limits_of
from pixelrt.goldens.make import walk_of
from pixelrt.goldens.sketch import CELLS, distance, sketch
from pixelrt.image import prepare
from pixelrt.segmenter import Segmenter

ANSWER, MASKS = "answer", "masks"


@dataclass(frozen=True)
class Finding:
    """One comparison. error: infinite where there is nothing to measure; words: why, then."""

    stage: str
    where: str
    error: float
    limit: float
    words: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.limit

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "error": self.error if math.isfinite(self.error) else None,
            "passed": self.passed,
        }

    def sentence(self) -> str:
        if self.words:
            return f"{self.stage}, {self.where}: {self.words}"
        return f"{self.stage}, {self.where}: off by {self.error:.2g}, may be {self.limit:g}"


class OtherGoldens(InputError):
    """Golden outputs that are not those of this bundle's graphs."""

    def __init__(self, what: str) -> None:
        super().__init__(f"The bundle's golden outputs {what}. Export it again.")


class StageFailed(Exception):
    """A graph did not run. args: stage, what it said."""


class Guarded:
    """An engine whose failure says which stage it is. Whatever else the engine has, it has."""

    def __init__(self, stage: str, engine: Engine) -> None:
        self.stage, self.engine = stage, engine
        self.file, self.memory = engine.file, engine.memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def __call__(
        self, inputs: Mapping[str, Value | Joined], into: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        try:
            return self.engine(inputs, into)
        except InputError:
            raise
        except Exception as error:  # of TensorRT, of the driver
            raise StageFailed(self.stage, _words(error)) from error


class Checking:
    """Compares; see `pixelrt.goldens.take.Take`."""

    def __init__(self, goldens: Goldens, limits: Mapping[str, float]) -> None:
        self.goldens, self.limits = goldens, limits
        self.findings: list[Finding] = []

    def note(self, stage: str, where: str, error: float, limit: float, words: str = "") -> None:
        self.findings.append(Finding(stage, where, error, limit, words))

    def see(self, stage: str, name: str, value: Value, cells: int = CELLS, how: str = "") -> None:
        golden = _golden(self.goldens.seen, f"{stage}/{name}")
        try:
            here = sketch(value, cells)
        except Exception as error:  # what went wrong on a GPU shows where its result is read
            raise StageFailed(stage, _words(error)) from error
        limit = self.limits[stage] + (self.limits["encoder"] if stage == "pixel_decoder" else 0)
        apart = distance(here, golden)
        words = "" if math.isfinite(apart) else _why(here, golden)
        self.note(stage, name + (f" {how}" if how else ""), apart, limit, words)

    def fix(self, name: str, value: Value) -> Array:
        golden = _golden(self.goldens.given, name)
        if golden.shape != tuple(value.shape):
            raise OtherGoldens(f"hold {name} as {golden.shape}, its graphs give {tuple(value.shape)}")
        return golden

    def choose(self, name: str, logits: NDArray[np.float32]) -> int:
        choice = self.goldens.choices.get(name)
        if choice is None:
            raise OtherGoldens(f"lack the choice of {name}")
        token, here = int(choice["token"]), int(logits.argmax())
        if here != token:
            lead = choice["margin"] / choice["scale"] if choice["scale"] else 0.0
            limit = TIES * self.limits["language"]
            words = "" if lead <= limit else f"token {here}, and {token} is golden"
            self.note("language", f"choice of {name}", lead, limit, words)
        return token


def check(
    segmenter: Segmenter, tell: Callable[[str, list[Finding]], None] = lambda stage, found: None
) -> list[Finding]:
    """All comparisons in order. tell: hears of each stage when it is done.

    Raises InputError: no goldens, or engines too small for them.
    """
    goldens = read_goldens(segmenter.bundle)
    walk = walk_of(segmenter.bundle)
    take = Checking(goldens, limits_of(segmenter))
    guarded: Any = copy.copy(segmenter)
    for stage in STAGES:
        setattr(guarded, f"_{stage}", Guarded(stage, getattr(segmenter, f"_{stage}")))
    try:
        walk.walk(guarded, goldens.picture, goldens.questions, goldens.max_new_tokens, take)
        _answers(walk, guarded, goldens, take)
    except OtherGoldens:
        raise
    except InputError as error:
        what = str(error).partition(". ")[0]
        raise InputError(
            f"The golden questions cannot be asked on {segmenter.backend}: {what}. Build engines with a larger "
            "--cache-length or --prefill."
        ) from None
    except StageFailed as failure:
        take.note(failure.args[0], "run", math.inf, 0.0, failure.args[1])
    for stage in (*STAGES, ANSWER, MASKS):
        tell(stage, [finding for finding in take.findings if finding.stage == stage])
    return take.findings


def first_fault(findings: list[Finding]) -> Finding | None:
    """In the order of the stages: what follows a stage that is off cannot be sound."""
    order = (*STAGES, ANSWER, MASKS)
    wrong = [finding for finding in findings if not finding.passed]
    return min(wrong, key=lambda finding: order.index(finding.stage), default=None)


def _answers(walk: Any, segmenter: Any, goldens: Goldens, take: Checking) -> None:
    limit = sum(take.limits.values())
    square, content = _frame_of(segmenter, goldens)
    try:
        for label, tokens, golden, answer in walk.answers(segmenter, goldens):
            if not _same_tokens(take, label, tokens, list(getattr(answer, "token_ids", [])), limit):
                continue
            for number, (mask, wanted) in enumerate(zip(answer.masks, golden, strict=False), start=1):
                here = np.asarray(mask.low_res_logits, np.float32)
                error = distance(sketch(here), sketch(wanted))
                take.note(ANSWER, f"{label}, mask {number}", error, limit)
                masks, _, _ = reference.upsample_mask(here[None], square, content, goldens.picture.shape[:2])
                take.note(MASKS, f"{label}, mask {number}", float((masks[0] != mask.mask).mean()), PIXELS)
            if golden and len(answer.masks) < len(golden):
                words = f"{len(answer.masks)} masks, {len(golden)} golden ones"
                take.note(ANSWER, f"{label}, masks", math.inf, 0.0, words)
    except ArithmeticError as error:  # logits that are not finite
        take.note(ANSWER, label if take.findings else "", math.inf, 0.0, _words(error))


def _same_tokens(take: Checking, label: str, golden: list[int], here: list[int], limit: float) -> bool:
    """Whether the answers are equal; they may part where the golden choice was a near tie."""
    if golden == here:
        take.note(ANSWER, f"{label}, {len(golden)} tokens", 0.0, 0.0)
        return True
    at = next(
        (i for i, (a, b) in enumerate(zip(golden, here, strict=False)) if a != b), min(len(golden), len(here))
    )
    choice = take.goldens.choices.get(f"{label.partition(',')[0]}.{at + 1}")
    lead = choice["margin"] / choice["scale"] if choice and choice["scale"] else math.inf
    words = "" if lead <= TIES * limit else "another token than the golden one"
    take.note(ANSWER, f"{label}, token {at + 1}", lead, TIES * limit, words)
    return False


def _frame_of(segmenter: Any, goldens: Goldens) -> tuple[int, tuple[int, int]]:
    content = prepare(goldens.picture, segmenter.image_spec).content
    return (
        max(content) if segmenter.bundle.manifest["family"] == "pixellm" else segmenter.image_spec.size
    ), content


def _golden(arrays: Mapping[str, Array], name: str) -> Array:
    if name not in arrays:
        raise OtherGoldens(f"lack {name}")
    return arrays[name]


def _why(here: Array, golden: Array) -> str:
    if here.shape != golden.shape:
        return f"{here.size} numbers, {golden.size} are golden"
    return f"{int(np.count_nonzero(~np.isfinite(here)))} of {here.size} sums are not finite"


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
