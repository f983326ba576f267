"""What the server has done, as prometheus reads it."""

from collections import Counter
from time import time

from starlette.types import Scope

from kvchat.machine import resources as machine
from kvchat.serve.library import Library
from kvchat.serve.scheduler import Scheduler

PATHS = (
    *("/", "/health", "/metrics", "/v1/models", "/v1/files", "/v1/chat/completions"),
    *("/v1/completions", "/v1/embeddings"),
)


class Metrics:
    """Counters of requests, and what scheduler and library know."""

    def __init__(self) -> None:
        self.begun = time()
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: Counter[str] = Counter()
        self.open = 0

    def request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that has ended; 499: its client had gone."""
        known = [path for path in PATHS if path != "/" and scope["path"].startswith(path)]
        path = max(known, key=len, default="/" if scope["path"] == "/" else "other")
        self.requests[path, status] += 1
        self.seconds[path] += seconds  # type: ignore[assignment]

    def text(self, scheduler: Scheduler, library: Library) -> str:
        """Prometheus' text format, version 0.0.4."""
        counts, engine = scheduler.counts, scheduler.engine
        ready = [each for each in library.documents.values() if each.cache is not None]
        lines = [
            *_head("kvchat_requests_total", "counter", "Requests that have ended."),
            *(
                f'kvchat_requests_total{{path="{path}",status="{status}"}} {number}'
                for (path, status), number in sorted(self.requests.items())
            ),
            *_head("kvchat_request_seconds_sum", "counter", "Seconds of these requests."),
            *(
                f'kvchat_request_seconds_sum{{path="{path}"}} {seconds:.3f}'
                for path, seconds in sorted(self.seconds.items())
            ),
        ]
        for name, kind, about, value in (
            ("answers_total", "counter", "Answers that came to their end.", counts.finished),
            ("answers_cancelled_total", "counter", "Answers whose client went.", counts.cancelled),
            ("answers_failed_total", "counter", "Answers that failed.", counts.failed),
            ("prompt_tokens_total", "counter", "Tokens of questions that were fed.", counts.fed),
            ("completion_tokens_total", "counter", "Tokens that were decoded.", counts.tokens),
            ("decode_steps_total", "counter", "Steps that decoded them, several in one.",
             counts.steps),
            ("decode_seconds_total", "counter", "Seconds of these steps.", counts.decoding),
            ("documents_read_total", "counter", "Documents that were prefilled.", library.read),
            ("documents_restored_total", "counter", "Documents that came from disk.",
             library.restored),
            ("answering", "gauge", "Answers that are being written.", scheduler.busy),
            ("waiting", "gauge", "Requests that wait for their turn.", scheduler.waiting),
            ("reading", "gauge", "Documents that are being read, or wait.", scheduler.reading),
            ("documents", "gauge", "Documents that are in memory.", len(ready)),
            ("documents_kv_bytes", "gauge", "Bytes of their KV cache.", library.kv_bytes),
            ("weights_bytes", "gauge", "Bytes of the weights.", engine.weights_bytes),
            ("memory_bytes", "gauge", "Bytes that are in use.", machine.in_use(engine.device)),
            ("room_bytes", "gauge", "Bytes that one more request may plan with.",
             scheduler.room()),
            ("start_time_seconds", "gauge", "When the server began.", round(self.begun, 3)),
        ):  # fmt: skip
            value = round(value, 3) if isinstance(value, float) else value
            lines += [*_head(f"kvchat_{name}", kind, about), f"kvchat_{name} {value}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
