"""The routes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from pixelrt import __version__, query_json
from pixelrt.errors import InputError
from pixelrt.queries import Refer
from pixelrt.segmenter import Segmenter
from pixelrt.serve import errors, openai, segment
from pixelrt.serve.guard import Guard
from pixelrt.serve.health import Health
from pixelrt.serve.metrics import CONTENT_TYPE, Metrics
from pixelrt.serve.page import page
from pixelrt.serve.settings import Settings
from pixelrt.serve.worker import Worker


class Service:
    """A segmenter, the worker that owns it, and `app`, which hands requests to the worker. Start and close the
    worker around it."""

    def __init__(self, segmenter: Segmenter, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(segmenter, settings.name)
        self.worker = Worker(segmenter, settings, self.metrics)
        self.health = Health(self.worker)
        # No docs_url, no redoc_url: those pages load scripts from elsewhere. /openapi.json is there.
        self.app = FastAPI(title="pixelrt", version=__version__, docs_url=None, redoc_url=None)
        self.app.add_middleware(Guard, settings=settings, metrics=self.metrics)
        errors.add_handlers(self.app)
        shown = page()
        self._get("/", lambda: shown, hidden=True)
        for path, route in self.health.routes().items():
            self._get(path, route)
        self._get("/metrics", lambda: Response(self.metrics.text(), media_type=CONTENT_TYPE), hidden=True)
        self._get("/v1/models", self.models)
        self.app.add_api_route("/v1/segment", segment.route(self.worker), methods=["POST"])
        self.app.add_api_route("/v1/chat/completions", openai.route(self.worker), methods=["POST"])

    def _get(self, path: str, route: Any, hidden: bool = False) -> None:
        # Response or a plain document: nothing for FastAPI to make a model of.
        self.app.add_api_route(path, route, include_in_schema=not hidden, response_model=None)

    async def models(self) -> dict[str, Any]:
        """What is served, and its limits."""
        segmenter, settings = self.worker.segmenter, self.settings
        try:
            segmenter.check(Refer("a mug"))
            tasks = query_json.ASKED
        except InputError:  # a family that is asked in words alone
            tasks = ()
        about = {
            "family": str(segmenter.bundle.manifest["family"]),
            "tasks": list(tasks),
            "backend": segmenter.backend,
            "bundle": segmenter.bundle.sha256,
            "version": __version__,
            "limits": {
                "body_bytes": settings.body_bytes,
                "pixels": settings.pixels,
                "prompt_chars": settings.prompt_chars,
                "new_tokens": settings.new_tokens,
            },
        }
        entry = {"id": settings.name, "object": "model", "created": 0, "owned_by": "pixelrt", **about}
        return {"object": "list", "data": [entry]}
