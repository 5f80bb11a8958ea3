"""One page out of many registries: what counts is added, what ended goes on counting, and each gauge has its rule."""

import msgspec
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.host.summing import GAUGES, KEEPERS_GAUGES, Values, lasting, summed, values_of
from gateway.metrics import Metrics
from policy.release import Outcome


class Everybody:
    def __init__(self, own, workers, ended):
        self.parts = own, workers, ended

    def collect(self):
        own, workers, ended = self.parts
        return summed(own, workers=workers, ended=ended)


def worker(*, answers=0, open_answers=0, waiting=0, lag_s=()):
    """A worker's samples, as they come over the channel."""
    metrics = Metrics()
    for _ in range(answers):
        metrics.of("m", "alice").released(bits=80, text_bytes=9)
        metrics.of("m", "alice").ended(Outcome.STOP)
    metrics.in_flight.labels("m").set(open_answers)
    metrics.settle_backlog.labels("zstd").set(waiting)
    metrics.reload_ok.set(1)
    for seconds in lag_s:
        metrics.tick_lag.observe(seconds)
    return msgspec.msgpack.decode(msgspec.msgpack.encode(values_of(metrics.registry)), type=Values)


def page(own, workers=(), *, ended=None):
    """What Prometheus would read: samples by name and labels, and families by name."""
    everybody = Everybody(own.registry, list(workers), ended or {})
    families = list(text_string_to_metric_families(generate_latest(everybody).decode()))
    samples = {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}
    return samples, {family.name: family for family in families}


def value(samples, name, **labels):
    return samples[name, frozenset(labels.items())]


@pytest.fixture
def own():
    metrics = Metrics()
    metrics.reload_ok.set(1)
    return metrics


def test_counters_of_all_processes_are_added_up(own):
    own.ledger_errors.inc(2)
    samples, _ = page(own, [worker(answers=3), worker(answers=4)])
    assert value(samples, "weir_charged_bits_total", model="m", tenant="alice", code="raw") == 7 * 80
    assert value(samples, "weir_requests_total", model="m", tenant="alice", outcome="stop") == 7
    assert value(samples, "weir_ledger_errors_total") == 2


def test_histograms_are_added_bucket_by_bucket_and_their_buckets_stay_in_order(own):
    samples, families = page(own, [worker(lag_s=[0.004, 0.3]), worker(lag_s=[0.004])])
    assert value(samples, "weir_tick_lag_seconds_bucket", le="0.005") == 2
    assert (
        value(samples, "weir_tick_lag_seconds_bucket", le="+Inf") == value(samples, "weir_tick_lag_seconds_count") == 3
    )
    assert value(samples, "weir_tick_lag_seconds_sum") == pytest.approx(0.308)
    buckets = [s for s in families["weir_tick_lag_seconds"].samples if s.name.endswith("_bucket")]
    assert [float(s.labels["le"]) for s in buckets] == sorted(float(s.labels["le"]) for s in buckets)


def test_what_a_worker_counted_is_kept_when_it_ends_and_how_it_stood_is_not(own):
    ended = lasting(own.registry)
    for _ in range(3):
        ended = lasting(own.registry, ended, worker(answers=2, open_answers=5, lag_s=[0.1]))
    samples, _ = page(own, [worker(answers=1, open_answers=1)], ended=ended)
    assert value(samples, "weir_requests_total", model="m", tenant="alice", outcome="stop") == 7
    assert value(samples, "weir_tick_lag_seconds_count") == 3
    assert value(samples, "weir_answers_in_flight", model="m") == 1


def test_gauges_follow_their_rules(own):
    behind = Metrics()
    samples, _ = page(own, [worker(open_answers=2, waiting=1), worker(open_answers=3, waiting=4)])
    assert value(samples, "weir_answers_in_flight", model="m") == 5
    assert value(samples, "weir_settle_backlog_answers", code="zstd") == 5
    assert value(samples, "weir_config_last_reload_successful") == 1
    samples, _ = page(own, [worker(), values_of(behind.registry)])
    assert value(samples, "weir_config_last_reload_successful") == 0


def test_leases_end_when_those_of_the_first_worker_do_and_the_keeper_has_none(own):
    early, late = Metrics(), Metrics()
    early.leases_until.set(1000.5)
    early.leases_open.set(3)
    late.leases_until.set(2000)
    late.leases_open.set(4)
    samples, _ = page(own, [values_of(late.registry), values_of(early.registry)])
    assert value(samples, "weir_leases_until_timestamp_seconds") == 1000.5
    assert value(samples, "weir_leases_open") == 7
    assert value(page(own)[0], "weir_leases_until_timestamp_seconds") == 0


def test_what_only_the_keeper_knows_is_not_asked_of_workers(own):
    astray = Metrics()
    astray.workers.set(7)
    astray.budget_used.labels("model", "m", "m", "lifetime").set(1)
    own.workers.set(2)
    own.build.info({"version": "1", "policy": "p", "codes": "c"})
    samples, _ = page(own, [values_of(astray.registry)])
    assert value(samples, "weir_workers") == 2
    assert value(samples, "weir_build_info", version="1", policy="p", codes="c") == 1
    assert not [name for name, _ in samples if name == "weir_budget_used_bits"]


def test_every_gauge_has_a_rule_and_no_rule_is_without_a_gauge():
    gauges = {family.name for family in Metrics().registry.collect() if family.type == "gauge"}
    assert gauges == GAUGES.keys() | KEEPERS_GAUGES
    assert not GAUGES.keys() & KEEPERS_GAUGES


def test_the_page_of_many_describes_its_families_as_the_page_of_one(own):
    def described(registry):
        return [line for line in generate_latest(registry).decode().splitlines() if line.startswith("#")]

    assert described(Everybody(own.registry, [worker(answers=1)] * 2, {})) == described(own.registry)
