"""PixelLM: a question is answered word by word; each run of codebook tokens becomes a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from pixelrt_kernels.upsample_mask.reference import upsample_mask

from pixelrt.bundle import Bundle
from pixelrt.engine import Array, Backend
from pixelrt.generate import Codebook, Generation, generate, prompt_rows
from pixelrt.image import ImageSpec, open_image, prepare
from pixelrt.language import Context
from pixelrt.masks import Answer, Mask, labelled_spans
from pixelrt.prompt import PromptBuilder
from pixelrt.queries import Query, refuse
from pixelrt.segmenter import Frame, stage
from pixelrt.tokens import TokenTable

MARK = "[SEG]"
FEATURES = ("level0", "level0_key", "level0_value", "level0_query", "level1")


def open_family(bundle: Bundle, backend: Backend) -> PixelLM:
    return PixelLM(bundle, backend)


class PixelLM:
    """A loaded PixelLM bundle; see `pixelrt.segmenter.Segmenter`."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle, self.backend = bundle, backend.name
        manifest = bundle.manifest
        tokens, language = manifest["tokens"], manifest["language"]
        self.image_spec = ImageSpec.from_dict(manifest["image"])
        self.codebook = Codebook(tuple(tokens["seg"]))
        self.scales = int(tokens["seg_scales"])
        self.eos, self.max_positions = int(tokens["eos"]), int(language["max_positions"])
        self.prompt = PromptBuilder.from_manifest(
            bundle.file(tokens["tokenizer"]),
            manifest["prompt"],
            int(tokens["bos"]),
            # Room for the image, and to complete a run that begins at the very end.
            self.max_positions - int(tokens["image_tokens"]) - self.codebook.run + 1,
        )
        table = manifest["embeddings"]
        self.table = TokenTable(bundle.file(table["file"]), table["dtype"], table["shape"])
        self._encoder = backend.open("encoder")
        self._language = backend.open("language")
        self._pixel_decoder = backend.open("pixel_decoder")

    def encode(self, image: Any) -> Frame:
        """All that depends on the image alone; reuse the frame for every question about it."""
        timing: dict[str, float] = {}
        with stage(timing, "image"):
            rgb = open_image(image)
            prepared = prepare(rgb, self.image_spec)
        with stage(timing, "encode"):
            out = self._encoder({"pixels": prepared.pixels, "patch_valid": prepared.patch_valid})
        features = {name: out[name] for name in FEATURES}
        return Frame(rgb, prepared.content, out["image_tokens"][0], prepared.token_valid, features, timing)

    def segment(
        self,
        frame: Frame | Any,
        prompt: str | Query,
        max_new_tokens: int = 512,
        seg_runs: str = "complete",
    ) -> Answer:
        """Answer `prompt` about a frame.

        prompt: a question; or a complete prompt, recognised by its `<image>`. max_new_tokens: at most; fewer
        where the model has no positions left. seg_runs: `complete` finishes every run of codebook tokens once
        begun; `original` does as the original code, where one malformed run drops all masks of the answer.
        """
        if isinstance(prompt, Query):
            raise refuse(prompt, "pixellm", {"a question in words": "Segment the mug."})
        ids = self.prompt(prompt)
        frame = frame if isinstance(frame, Frame) else self.encode(frame)
        timing = dict(frame.timing)
        image_end = len(ids.head) + len(frame.tokens)
        length = image_end + len(ids.tail)
        spare = self.codebook.run - 1
        budget = min(max_new_tokens, self.max_positions - length - spare)
        context = Context(self._language, length + budget + spare)
        embeddings = np.concatenate([self.table(ids.head), frame.tokens, self.table(ids.tail)])
        visible = np.ones(length, np.bool_)
        visible[len(ids.head) : image_end] = frame.token_valid
        with stage(timing, "language"):
            generation = generate(
                context,
                self.table,
                embeddings,
                visible,
                prompt_rows(ids.tail, image_end, self.codebook),
                self.codebook,
                eos=self.eos,
                max_new_tokens=budget,
                seg_runs=seg_runs,
            )
        text, marks = self.render(generation.token_ids)
        masks = self._masks(frame, generation, labelled_spans(text, MARK)[:marks], timing)
        return Answer(text, generation.token_ids, masks, timing)

    def render(self, token_ids: list[int]) -> tuple[str, int]:
        """Readable text with `[SEG]` where a full run stands, and how many runs there are."""
        run, ids = self.codebook.run, [t for t in token_ids if t != self.eos]
        pieces: list[str] = []
        marks = i = 0
        while i < len(ids):
            if ids[i] in self.codebook.ids:
                whole = len(ids) - i >= run and all(t in self.codebook.ids for t in ids[i : i + run])
                step = run if whole else 1
                marks += whole
                pieces.append(MARK if whole else self.prompt.tokenizer.id_to_token(ids[i]) or "")
            else:
                stop = i
                while stop < len(ids) and ids[stop] not in self.codebook.ids:
                    stop += 1
                pieces.append(self.prompt.tokenizer.decode(ids[i:stop], skip_special_tokens=False).strip())
                step = stop - i
            i += step
        text = ""
        for piece in pieces:
            glue = "" if not text or piece[:1] in ".,;:!?)" else " "
            text += glue + piece if piece else ""
        return text, marks

    def _masks(
        self,
        frame: Frame,
        generation: Generation,
        labels: list[tuple[str, tuple[int, int]]],
        timing: dict[str, float],
    ) -> list[Mask]:
        targets = generation.targets(self.codebook)
        if targets is None:
            return []
        count = len(targets)
        hidden: Array = targets.reshape(count, self.scales, self.codebook.run // self.scales, -1)
        with stage(timing, "pixel_decoder"):
            low_res = self._pixel_decoder({"seg_hidden": hidden, **frame.features})["low_res_masks"]
        with stage(timing, "upsample"):
            size = frame.image.shape[:2]
            masks, scores, boxes = upsample_mask(
                low_res, max(frame.content), frame.content, (size[0], size[1])
            )
        # Targets named in the prompt come first and have no place in the answer.
        known: list[tuple[str, tuple[int, int] | None]] = [("", None)] * (count - len(labels))
        known.extend(labels)
        return [
            Mask(
                mask=masks[i],
                score=float(scores[i]),
                label=known[i][0],
                span=known[i][1],
                box=_box(boxes[i]),
                low_res_logits=low_res[i],
            )
            for i in range(count)
        ]


def _box(row: Array) -> tuple[int, int, int, int] | None:
    """None for an empty mask, whose box is all zeros."""
    x0, y0, x1, y1 = (int(value) for value in row)
    return (x0, y0, x1, y1) if x1 > x0 else None
