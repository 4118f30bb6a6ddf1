"""/metrics in Prometheus' text format, from the engine's counters. What the backend can't know is left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from flashmoe.serve.engine import Engine

__all__ = ["CONTENT_TYPE", "render"]


class _EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        engine = self._engine
        up = GaugeMetricFamily("flashmoe_up", "1 while the engine answers", value=float(engine.ready))
        yield up
        yield GaugeMetricFamily("flashmoe_requests_in_flight", "Requests admitted and not ended", engine.in_flight)
        ended = CounterMetricFamily("flashmoe_requests_finished", "Requests ended, by reason", labels=["reason"])
        for reason, n in engine.finished.items():
            ended.add_metric([reason], n)
        yield ended
        yield CounterMetricFamily("flashmoe_requests_failed", "Requests that failed", engine.failed)
        yield CounterMetricFamily("flashmoe_engine_restarts", "Times the engine was restarted", engine.restarts)
        if engine.ready:
            info = engine.info
            facts = {"name": engine.model_id, "backend": info.backend, "architecture": info.architecture}
            yield InfoMetricFamily("flashmoe_model", "The loaded model", value=facts)
        prompts = list(engine.prompts.values())
        for name, text, tokens in (
            ("done", "Tokens done of the prompts being computed", sum(p.done for p in prompts)),
            ("total", "All tokens of the prompts being computed", sum(p.total for p in prompts)),
        ):
            yield GaugeMetricFamily(f"flashmoe_prompts_{name}_tokens", text, value=tokens)
        t = engine.telemetry
        if t is None:
            return
        counters = [
            ("flashmoe_prefill_tokens", "Prompt tokens computed", t.prefill_tokens),
            ("flashmoe_prompt_reused_tokens", "Prompt tokens that the KV cache had already", t.reused_tokens),
            ("flashmoe_prompt_restored_tokens", "Prompt tokens that came from the store of prompts", t.restored_tokens),
            ("flashmoe_decode_tokens", "Tokens generated", t.decode_tokens),
            ("flashmoe_prefill_seconds", "Seconds of prefill", t.prefill_s),
            ("flashmoe_decode_seconds", "Seconds of decode", t.decode_s),
            ("flashmoe_stall_seconds", "Seconds that compute waited for expert bytes", t.stall_s),
            ("flashmoe_expert_hits", "Chosen experts that were in RAM", t.expert_hits),
            ("flashmoe_expert_misses", "Chosen experts that had to be read", t.expert_misses),
            ("flashmoe_read_bytes", "Expert bytes read from storage", t.read_bytes),
            ("flashmoe_evictions", "Experts dropped from RAM", t.evictions),
        ]
        for name, text, count in counters:
            if count is not None:
                yield CounterMetricFamily(name, text, value=count)
        gauges = [
            ("flashmoe_resident_bytes", "Expert bytes in RAM", t.resident_bytes),
            ("flashmoe_budget_bytes", "The most that experts may hold in RAM", t.budget_bytes),
            ("flashmoe_context_used_tokens", "Tokens in the KV cache", t.ctx_used),
            ("flashmoe_sequences_active", "Sequences being decoded or prefilled", t.n_active),
            ("flashmoe_sequences_waiting", "Requests waiting for a place", t.n_waiting),
        ]
        if t.expert_hits is not None and t.expert_misses is not None and t.expert_hits + t.expert_misses:
            rate = t.expert_hits / (t.expert_hits + t.expert_misses)
            yield GaugeMetricFamily(
                "flashmoe_expert_hit_ratio", "Share of chosen experts found in RAM since load", value=rate
            )
        for name, text, gauge in gauges:
            if gauge is not None:
                yield GaugeMetricFamily(name, text, value=gauge)


def render(engine: Engine) -> bytes:
    """The whole exposition, as bytes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_EngineCollector(engine))
    return bytes(generate_latest(registry))
