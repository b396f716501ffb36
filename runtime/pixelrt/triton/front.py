"""The front model: questions about pictures in, answers and masks out. `files/model.py` is its door to Triton.

| tensor | type | |
|---|---|---|
| image | BYTES (1, 1) | a file: PNG, JPEG, WebP, TIFF |
| query | BYTES (1, 1) | JSON of pixelrt.query_json: {"prompt": "Segment the mug."} |
| max_new_tokens | INT32 (1, 1) | may be left out |
| answer | BYTES (1, 1) | JSON as POST /v1/segment of `pixelrt serve` gives it; masks as COCO RLE |
| masks | BOOL (1, N, H, W) | the same masks, made where a request asks for them |
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelrt.backends import open_backend
from pixelrt.bundle import Bundle
from pixelrt.errors import InputError
from pixelrt.segmenter import Segmenter, open_bundle
from pixelrt.serve.answering import Answering, Asked, Told, failure
from pixelrt.serve.document import document
from pixelrt.serve.settings import Settings
from pixelrt.triton.config import ANSWER, IMAGE, MASKS, MAX_NEW_TOKENS, QUERY
from pixelrt.triton.leaf import LeafBackend

MODELS, IN_PROCESS = "models", "in-process"  # of the parameter `leaves`
FRESH = "fresh"  # parameter of a request: run the encoder whether the picture is known or not


class Front:
    """One instance of the front model."""

    def __init__(self, args: dict[str, str], pb: Any) -> None:
        """args: as Triton gives them to `initialize`. pb: triton_python_backend_utils. Raises InputError."""
        config = json.loads(args["model_config"])
        told = {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}
        if args["model_instance_kind"] == "GPU":
            # Each instance is a process of its own; what it opens first is its GPU.
            os.environ["CUDA_VISIBLE_DEVICES"] = args["model_instance_device_id"]
        folder = Path(args["model_repository"]) / args["model_version"] / "bundle"
        self.pb, self.name = pb, config["name"]
        self.answering = Answering(opened(folder, told, pb), settings_of(self.name, told))

    def __call__(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request, in their order."""
        asked = [self._asked(request) for request in requests]
        answers = iter(self.answering([one for one in asked if isinstance(one, Asked)]))
        return [
            self._response(request, next(answers) if isinstance(one, Asked) else one)
            for request, one in zip(requests, asked, strict=True)
        ]

    def _asked(self, request: Any) -> Asked | Exception:
        try:
            picture, query = (self._value(request, name) for name in (IMAGE, QUERY))
            tokens = self._value(request, MAX_NEW_TOKENS)
            if tokens is not None and tokens < 1:
                raise InputError(f"{MAX_NEW_TOKENS} is {tokens}. Give 1 or more.")
            fresh = bool(json.loads(request.parameters() or "{}").get(FRESH))
            return Asked(picture, _json(query), None if tokens is None else int(tokens), fresh)
        except Exception as error:
            return error

    def _value(self, request: Any, name: str) -> Any:
        """The one value of an input, None where it was left out. Raises InputError."""
        tensor = self.pb.get_input_tensor_by_name(request, name)
        if tensor is None:
            return None
        values = tensor.as_numpy()
        if values.size != 1:
            raise InputError(f"{name} has shape {list(values.shape)}. Ask one question a request: [1, 1].")
        return values.reshape(-1)[0]

    def _response(self, request: Any, told: Told | Exception) -> Any:
        if isinstance(told, Exception):
            codes = self.pb.TritonError
            code = codes.INVALID_ARG if isinstance(told, InputError) else codes.INTERNAL
            return self.pb.InferenceResponse([], error=self.pb.TritonError(failure(told), code))
        wanted, tensors = set(request.requested_output_names()), []
        if ANSWER in wanted:
            text = json.dumps(document(told, self.name), ensure_ascii=False).encode("utf-8", "replace")
            tensors.append(self.pb.Tensor(ANSWER, np.array([[text]], np.object_)))
        if MASKS in wanted:
            masks = np.zeros((1, len(told.result.masks), *told.frame.image.shape[:2]), np.bool_)
            for number, mask in enumerate(told.result.masks):
                masks[0, number] = mask.mask
            tensors.append(self.pb.Tensor(MASKS, masks))
        return self.pb.InferenceResponse(tensors)


def opened(folder: Path, told: dict[str, str], pb: Any) -> Segmenter:
    """The bundle, its leaves where `told` says that they are."""
    bundle = Bundle.read(folder)
    here = open_backend(bundle, told.get("backend", "auto"))
    leaves = told.get("leaves", IN_PROCESS)
    if leaves not in (MODELS, IN_PROCESS):
        raise InputError(
            f"the parameter leaves is {leaves!r}. Write {MODELS} or {IN_PROCESS} into config.pbtxt."
        )
    if leaves == IN_PROCESS:
        return open_bundle(bundle, here)
    return open_bundle(bundle, LeafBackend(bundle, here, told.get("activations", "float32"), pb))


def settings_of(name: str, told: dict[str, str]) -> Settings:
    """The limits among the parameters, by the names of `Settings`. Raises InputError."""
    usual = Settings(name)
    try:
        pixels, prompt_chars, new_tokens, frames_bytes = (
            int(told.get(key, getattr(usual, key)))
            for key in ("pixels", "prompt_chars", "new_tokens", "frames_bytes")
        )
        return Settings(
            name, pixels=pixels, prompt_chars=prompt_chars, new_tokens=new_tokens, frames_bytes=frames_bytes
        )
    except ValueError as error:  # an InputError is one too
        raise InputError(f"config.pbtxt: {error}") from None


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError, TypeError):
        raise InputError(f'{QUERY} is not JSON. Give an object: {{"prompt": "Segment the mug."}}.') from None
