"""What a Prometheus server reads at ``/metrics``."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from vtc.serve.generation.engine import Generated
from vtc.serve.generation.worker import Worker

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, worker: Worker):
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()

        def add(kind: Any, name: str, words: str, **more: Any) -> Any:
            return kind(name, words, registry=self.registry, **more)

        self.requests = add(Counter, "vtc_requests", "Requests by path and status", labelnames=("path", "status"))
        self.refused = add(Counter, "vtc_refused", "Requests that were refused, by reason", labelnames=("reason",))
        self.gone = add(Counter, "vtc_clients_gone", "Requests whose client left before the answer")
        self.seen = add(Counter, "vtc_visual_tokens_seen", "Visual tokens of answered requests, before pruning")
        self.kept = add(Counter, "vtc_visual_tokens_kept", "Visual tokens left behind the last pruning step")
        self.prompt = add(Counter, "vtc_prompt_tokens", "Tokens of prompts, all visual tokens included")
        self.generated = add(Counter, "vtc_generated_tokens", "Tokens of answers")
        self.first = add(
            Histogram, "vtc_time_to_first_token_seconds", "From arrival to the first token", buckets=SECONDS
        )
        self.next = add(Histogram, "vtc_inter_token_seconds", "Between two tokens", buckets=TOKEN_SECONDS)
        self.whole = add(Histogram, "vtc_request_seconds", "From arrival to the end of the answer", buckets=SECONDS)
        add(Gauge, "vtc_queue_depth", "Requests that wait").set_function(lambda: worker.waiting)
        add(Gauge, "vtc_running", "Requests that are being answered").set_function(lambda: worker.running)

    def answered(self, found: Generated, arrived: float) -> None:
        """Count an answer; `arrived` is when its request came, on the clock of its times."""
        self.seen.inc(found.measured.total)
        self.kept.inc(found.measured.kept)
        self.prompt.inc(found.prompt_tokens)
        self.generated.inc(found.tokens)
        if found.times:
            self.first.observe(found.times[0] - arrived)
            self.whole.observe(found.times[-1] - arrived)
        for before, after in pairwise(found.times):
            self.next.observe(after - before)

    def text(self) -> tuple[bytes, str]:
        """All of it in Prometheus' text form, and what that is called."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST
