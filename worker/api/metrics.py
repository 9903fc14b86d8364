"""Renders the engine's counters for `/metrics` in Prometheus' text format, with llama-server's names. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ..engine.counters import Metrics

CONTENT_TYPE = "text/plain; version=0.0.4"
PREFIX = "llamacpp:"


class _Scrape(Collector):
    """One snapshot of the metrics in the form that prometheus-client renders."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        totals = self._metrics.totals
        yield _counter(
            "prompt_tokens_total", "Prompt tokens computed, without those reused from a cache", totals.prompt_tokens
        )
        yield _counter("prompt_tokens_cached_total", "Prompt tokens reused from a cache", totals.prompt_tokens_cached)
        yield _counter("prompt_seconds_total", "Time spent on prompts", totals.prompt_seconds)
        yield _counter("tokens_predicted_total", "Tokens generated", totals.predicted_tokens)
        yield _counter("tokens_predicted_seconds_total", "Time spent on generating", totals.predicted_seconds)
        yield _counter("n_decode_total", "Calls of llama_decode", totals.decodes)
        yield _gauge("n_tokens_max", "Longest sequence seen, prompt and generated tokens", totals.max_tokens)
        yield from self._drafts()
        yield from self._gauges()

    def _drafts(self) -> Iterable[Metric]:
        totals = self._metrics.totals
        yield _counter("spec_decode_num_draft_tokens_total", "Speculative: tokens drafted", totals.drafted)
        yield _counter(
            "spec_decode_num_accepted_tokens_total", "Speculative: drafted tokens accepted", totals.draft_accepted
        )
        yield _counter("spec_decode_num_drafts_total", "Speculative: drafts verified", totals.draft_checks)
        if totals.accepted_at:
            name = "spec_decode_num_accepted_tokens_per_pos_total"
            metric = Metric(
                PREFIX + name.removesuffix("_total"), "Speculative: tokens accepted, by position", "counter"
            )
            for position, count in enumerate(totals.accepted_at):
                metric.add_sample(PREFIX + name, {"position": str(position)}, count)
            yield metric

    def _gauges(self) -> Iterable[Metric]:
        metrics = self._metrics
        yield _gauge(
            "prompt_tokens_seconds", "Prompt tokens per second since the last scrape", metrics.prompt_tokens_per_second
        )
        yield _gauge(
            "predicted_tokens_seconds",
            "Generated tokens per second since the last scrape",
            metrics.predicted_tokens_per_second,
        )
        yield _gauge("requests_processing", "Requests in a slot", metrics.totals.processing)
        yield _gauge("requests_deferred", "Requests waiting for a slot", metrics.totals.deferred)
        yield _gauge(
            "n_busy_slots_per_decode", "Mean number of busy slots per llama_decode", metrics.busy_slots_per_decode
        )


def _counter(name: str, text: str, value: float) -> Metric:
    metric = Metric(PREFIX + name.removesuffix("_total"), text, "counter")
    metric.add_sample(PREFIX + name, {}, value)
    return metric


def _gauge(name: str, text: str, value: float) -> Metric:
    metric = Metric(PREFIX + name, text, "gauge")
    metric.add_sample(PREFIX + name, {}, value)
    return metric


def exposition(metrics: Metrics) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(metrics))
    # to llama-server this maximum is a counter, but the library would add _total to such a name
    return generate_latest(registry).replace(b"n_tokens_max gauge", b"n_tokens_max counter")
