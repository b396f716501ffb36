"""A Ray Serve app, for those who have Ray: replicas of a bundle behind POST /v1/segment, as `pixelrt serve` has it.

    pip install 'pixelrt[cpu,ray]'
    serve run pixelrt.serve.ray_app:app bundle=/path/to/bundle replicas=2

It lies in the package and not among the examples: every node that has pixelrt can then start a replica. Ray gathers,
queues, distributes and replaces replicas; nothing here does. A replica that dies takes the questions with it that it
was answering: their clients ask again (examples/ask_a_server.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

import pixelrt
from pixelrt.errors import InputError
from pixelrt.serve.answering import Answering, Asked, Told, failure
from pixelrt.serve.document import document, query_of
from pixelrt.serve.errors import error_body
from pixelrt.serve.limits import TooManyPixels
from pixelrt.serve.settings import Settings
from pixelrt.triton.sample import sample_of

RECENT_S = 10.0  # an answer this young shows that the model runs
OPTIONS = ("bundle", "backend", "replicas", "gpus", "batch", "wait_ms", "waiting")


class Segment:
    """One replica."""

    def __init__(self, bundle: str, backend: str, batch: int, wait_ms: float) -> None:
        self.settings = Settings(Path(bundle).name, batch=batch, wait_ms=wait_ms)
        self.answering = Answering(pixelrt.load(bundle, backend=backend), self.settings)
        picture, sample = sample_of(self.answering.segmenter)
        self.probe = Asked(picture, sample["query"], fresh=True)
        self.succeeded = time.monotonic()

        async def answers(asked: list[Asked]) -> list[Told | Exception]:
            found: list[Told | Exception] = await run_in_threadpool(self.answering, asked)
            return found

        self.answers = serve.batch(
            answers, max_batch_size=self.settings.batch, batch_wait_timeout_s=self.settings.wait_ms / 1e3
        )

    async def __call__(self, request: Request) -> JSONResponse:
        if request.url.path != "/v1/segment" or request.method != "POST":
            return _refused(404, "There is nothing here. POST a picture and a prompt to /v1/segment.")
        length = request.headers.get("content-length", "")
        if not length.isdigit() or int(length) > self.settings.body_bytes:
            sentence = (
                f"The request is too large or does not say; {self.settings.body_bytes:,} bytes are allowed."
            )
            return _refused(413, sentence)
        try:
            asked = await _asked(request)
        except InputError as error:
            return _refused(400, str(error))
        told = await self.answers(asked)
        if isinstance(told, Exception):
            code = 413 if isinstance(told, TooManyPixels) else 400 if isinstance(told, InputError) else 500
            return _refused(code, failure(told))
        self.succeeded = time.monotonic()
        return JSONResponse(await run_in_threadpool(document, told, self.settings.name))

    async def check_health(self) -> None:
        """Ray replaces a replica for which this raises, or does not come back."""
        if time.monotonic() - self.succeeded < RECENT_S:
            return
        told = await self.answers(self.probe)
        if isinstance(told, Exception):
            raise told
        self.succeeded = time.monotonic()


async def _asked(request: Request) -> Asked:
    """Raises InputError."""
    try:
        form = await request.form(max_files=1, max_fields=20)
    except Exception as error:  # starlette's own, for a body that is no form
        raise InputError(f"The body is no form ({type(error).__name__}). Send -F image=@photo.jpg.") from None
    image = form.get("image")
    if image is None or isinstance(image, str):
        raise InputError(
            "The request has no image. Send one: curl -F image=@photo.jpg -F prompt='Segment the mug.'"
        )
    fields = {key: value for key, value in form.items() if isinstance(value, str)}
    tokens = fields.get("max_new_tokens", "1")
    if not tokens.isdecimal() or not int(tokens):
        raise InputError(f"max_new_tokens is {tokens[:20]!r}. Give 1 or more.")
    most = int(tokens) if "max_new_tokens" in fields else None
    return Asked(await image.read(), query_of(fields), most)


def _refused(code: int, sentence: str) -> JSONResponse:
    return JSONResponse(error_body(code, sentence), code)


def app(args: Mapping[str, str]) -> Any:
    """For `serve run pixelrt.serve.ray_app:app KEY=VALUE …` and `serve.run(app({…}))`.

    bundle: path on every node. replicas; gpus: of each, may be a fraction; backend; batch, wait_ms: what a replica
    gathers; waiting: questions that wait, further ones get 503. Raises InputError.
    """
    unknown = sorted(set(args) - set(OPTIONS))
    if unknown or "bundle" not in args:
        what = f"no option {unknown[0]!r}" if unknown else "the bundle is missing"
        raise InputError(f"{what}. Give bundle=PATH, and any of {', '.join(OPTIONS[1:])}.")
    try:
        replicas, batch, waiting = (
            int(args.get(key, usual)) for key, usual in (("replicas", 1), ("batch", 8), ("waiting", 32))
        )
        gpus, wait_ms = float(args.get("gpus", 0)), float(args.get("wait_ms", 5.0))
    except ValueError as error:
        raise InputError(f"{error}. Give a number.") from None
    deployment = serve.deployment(
        Segment,
        name="pixelrt",
        num_replicas=replicas,
        max_ongoing_requests=2 * batch,
        max_queued_requests=waiting,
        health_check_period_s=RECENT_S,
        ray_actor_options={"num_gpus": gpus} if gpus else {},
    )
    bundle = str(Path(args["bundle"]).resolve())
    return deployment.bind(bundle, str(args.get("backend", "auto")), batch, wait_ms)
