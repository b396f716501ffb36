"""What Prometheus may ask about a server. Each server has a registry of its own."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pixelrt import __version__
from pixelrt.segmenter import Segmenter

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters by name; `text()` is what /metrics answers."""

    def __init__(self, segmenter: Segmenter, name: str) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)  # memory, CPU time, open files
        self.requests = Counter("pixelrt_requests", "HTTP requests.", ["path", "code"], registry=own)
        self.request_s = Histogram(
            "pixelrt_request_seconds",
            "From the first byte to the last.",
            ["path"],
            buckets=SECONDS,
            registry=own,
        )
        self.refused = Counter(
            "pixelrt_refused", "Requests refused, by the reason.", ["reason"], registry=own
        )
        self.answers = Counter("pixelrt_answers", "Questions answered.", registry=own)
        self.failures = Counter(
            "pixelrt_failures", "Questions that failed, the fault being ours.", registry=own
        )
        self.abandoned = Counter(
            "pixelrt_abandoned", "Questions whose client left before their turn.", registry=own
        )
        self.masks = Counter("pixelrt_masks", "Masks drawn.", registry=own)
        self.encoder_runs = Counter("pixelrt_encoder_runs", "Pictures encoded.", registry=own)
        self.frame_hits = Counter(
            "pixelrt_frame_hits", "Questions whose picture was encoded already.", registry=own
        )
        self.frames = Gauge("pixelrt_frames", "Encoded pictures that are kept.", registry=own)
        self.frame_bytes = Gauge("pixelrt_frame_bytes", "Bytes of them.", registry=own)
        self.waiting = Gauge("pixelrt_waiting", "Questions in the queue.", registry=own)
        self.answering = Gauge(
            "pixelrt_answering", "Questions taken from it and not answered yet.", registry=own
        )
        self.batch = Histogram(
            "pixelrt_batch_questions",
            "Questions taken at once.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=own,
        )
        self.queue_s = Histogram("pixelrt_queue_seconds", "Time in the queue.", buckets=SECONDS, registry=own)
        self.stage_s = Histogram(
            "pixelrt_stage_seconds", "Time in a stage of the model.", ["stage"], buckets=SECONDS, registry=own
        )
        about = {"version": __version__, "model": name, "family": str(segmenter.bundle.manifest["family"])}
        Info("pixelrt", "What is served.", registry=own).info(
            {**about, "bundle": segmenter.bundle.sha256, "backend": segmenter.backend}
        )

    def stages(self, timing_ms: dict[str, float]) -> None:
        for stage, spent in timing_ms.items():
            self.stage_s.labels(stage).observe(spent / 1e3)

    def text(self) -> bytes:
        text: bytes = generate_latest(self.registry)
        return text
