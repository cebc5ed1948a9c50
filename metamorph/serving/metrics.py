"""What the server counts, for Prometheus; rates are made of the totals there."""

from fastapi.responses import JSONResponse
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from metamorph.generation.events import Usage
from metamorph.serving.engine import EngineThread
from metamorph.serving.refusals import Refused

FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
REQUEST_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Of one server, in a registry of its own."""

    def __init__(self, engine: EngineThread):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "metamorph_requests", "Requests that were answered", ["route", "status"],
            registry=registry,
        )  # fmt: skip
        self.refused = Counter(
            "metamorph_refused", "Requests that were refused, by code of the error", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.request_seconds = Histogram(
            "metamorph_request_seconds", "From a request's head to its answer's last byte",
            ["route"], buckets=REQUEST_SECONDS, registry=registry,
        )  # fmt: skip
        self.first_token_seconds = Histogram(
            "metamorph_time_to_first_token_seconds",
            "From a request's head to the first text or visual token of an answer",
            buckets=FIRST_TOKEN_SECONDS, registry=registry,
        )  # fmt: skip
        self.tokens = Counter(
            "metamorph_tokens", "Tokens of finished answers: of prompts (`cached` of them were "
            "known from an earlier turn) and of answers", ["kind"], registry=registry,
        )  # fmt: skip
        self.images = Counter("metamorph_images", "Pictures in finished answers", registry=registry)
        for name, meaning, value in (
            ("queue_length", "Answers that wait for a slot", lambda: engine.waiting),
            ("active_answers", "Answers in slots", lambda: engine.status.active),
            ("slots", "Answers that can be made at once", lambda: engine.status.slots),
            (
                "batch_occupancy",
                "Share of the slots that are taken",
                lambda: engine.status.active / engine.status.slots,
            ),
            ("drawings", "Pictures that are drawn or wait for it", lambda: engine.drawings),
        ):
            Gauge(f"metamorph_{name}", meaning, registry=registry).set_function(value)

    def finished(self, usage: Usage) -> None:
        """Counts one answer."""
        self.tokens.labels("prompt").inc(usage.prompt_tokens)
        self.tokens.labels("cached").inc(usage.cached_tokens)
        self.tokens.labels("answer").inc(usage.answer_tokens)
        self.images.inc(usage.images)

    def refuse(self, refused: Refused) -> JSONResponse:
        """Counts it and makes it an answer."""
        self.refused.labels(refused.code or "other").inc()
        return refused.response()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
