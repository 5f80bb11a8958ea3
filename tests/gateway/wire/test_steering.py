"""Vectors through the gateway: handles in, a closed set of statuses and rounded numbers out."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import steering
from gateway.wire.dialect import Identity, ModelRules
from gateway.wire.steering import STATUSES, JobDecoder, JobRenderer, extract_call, job_call, model_mark, parse_extract
from policy.canonical import Finish, Malformed, Numbers
from policy.codelength import elias_delta_bits, ending_bits
from policy.limits import WIRE_BASE_BYTES
from policy.refusal import Reason, Refused
from policy.release import Ending, Outcome, Release

RULES = ModelRules(name="m", usage=True, token_ids=False, tokens_max=4096, tokens_default=512)
IDENTITY = Identity(id="abc", created_s=1, seed=2)
REQUEST = {"model": "m", "id": "calm", "positive": ["a", "b"], "negative": ["c", "d"], "layer": 3}
RESULT = {"layer": 3, "norm": 1.25, "residual_norm": 20.0, "mean_pairwise_cosine": -0.126, "d_prime": 4.0}


def parse(**changes):
    return parse_extract(json.dumps(REQUEST | changes).encode())


def decode(*chunks: bytes):
    decoder = JobDecoder()
    for chunk in chunks:
        assert list(decoder.feed(chunk)) == []
    return list(decoder.eof())


def render(events):
    ending = Ending(outcome=events[-1].outcome, numbers=events[0].values)
    release = Release(idle_ticks=0, quanta=0, text="", ending=ending)
    return json.loads(JobRenderer("job-1").release(release))


def test_an_extraction_is_built_field_by_field_with_ids_from_this_side():
    call = extract_call(parse(), RULES, IDENTITY, tenant="acme")
    fields = json.loads(call.upstream_body)
    assert set(fields) == {"id", "job_id", "method", "positive", "negative", "layer", "token", "chat"}
    assert fields["id"].endswith("-calm")
    assert fields["id"] != "calm"
    assert f"job-{model_mark('m')}-abc" in fields["job_id"]
    assert (call.status, call.upstream_method, call.upstream_path) == (202, "POST", "/v1/steering/extract")
    other = json.loads(extract_call(parse(), RULES, IDENTITY, tenant="other").upstream_body)
    assert other["id"] != fields["id"]


def test_a_job_is_asked_for_in_its_tenants_own_space():
    call = job_call("job-00000000-abc", RULES, tenant="acme")
    assert call.upstream_method == "GET"
    assert call.upstream_path != job_call("job-00000000-abc", RULES, tenant="other").upstream_path
    assert call.stateful


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"positive": []}, Reason.INVALID_REQUEST),
        ({"positive": ["a"]}, Reason.INVALID_REQUEST),
        ({"positive": [""], "negative": ["x"]}, Reason.INVALID_REQUEST),
        ({"id": "../up"}, Reason.INVALID_REQUEST),
        ({"id": "Upper"}, Reason.INVALID_REQUEST),
        ({"layer": -1}, Reason.INVALID_REQUEST),
        ({"layer": 1024}, Reason.INVALID_REQUEST),
        ({"method": "pca"}, Reason.INVALID_REQUEST),
        ({"tensor": [1.0]}, Reason.UNSUPPORTED_FIELD),
        ({"positive": ["x"] * 257, "negative": ["y"] * 257}, Reason.INVALID_REQUEST),
    ],
)
def test_what_is_no_extraction_is_refused(changes, reason):
    refused = parse(**changes)
    assert isinstance(refused, Refused)
    assert refused.reason is reason


@pytest.mark.parametrize("body", [b"", b"\xff", b'{"model": ', b'{"layer": NaN}'])
def test_what_is_not_json_is_refused_as_such(body):
    assert parse_extract(body).reason is Reason.INVALID_JSON


@pytest.mark.parametrize("status", STATUSES)
def test_a_job_says_one_of_four_words_and_its_progress_in_percent(status):
    body = json.dumps({"status": status, "progress": 0.4567, "message": "secret", "id": "secret"}).encode()
    events = decode(body[:7], body[7:])
    assert events == [Numbers((STATUSES.index(status), 46)), Finish(Outcome.STOP)]
    assert render(events) == {"id": "job-1", "object": "job", "status": status, "progress": 0.46}


def test_statistics_are_rounded_to_hundredths_and_keep_their_sign():
    events = decode(json.dumps({"status": "succeeded", "progress": 1, "result": RESULT}).encode())
    assert render(events)["result"] == RESULT | {"mean_pairwise_cosine": -0.13}


@given(st.floats(-1e6, 1e6))
def test_a_statistic_survives_to_within_half_a_step(value):
    number = steering._fixed_point(value)
    assert number >= 0
    assert abs(steering._unfix(number) - value) <= 0.005 + 1e-9


@given(st.integers(-(10**8), 10**8))
def test_no_two_statistics_share_a_number(steps):
    assert steering._unfix(steering._fixed_point(steps / 100)) == steps / 100


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"status": "hacked"}',
        b'{"status": "running", "progress": 2}',
        b'{"status": "running", "progress": NaN}',
        b'{"status": "running", "result": {"layer": 1}}',
        json.dumps({"status": "succeeded", "result": RESULT | {"norm": 1e7}}).encode(),
        json.dumps({"status": "succeeded", "result": RESULT | {"layer": 9999}}).encode(),
        b'{"x": ' + b"[" * 100_000,
    ],
    ids=range(9),
)
def test_what_is_no_job_is_malformed(body):
    with pytest.raises(Malformed):
        decode(body)


def test_a_job_over_the_limit_is_malformed():
    decoder = JobDecoder()
    decoder.feed(b" " * WIRE_BASE_BYTES)
    with pytest.raises(Malformed, match="over"):
        decoder.feed(b" ")


def test_a_statistic_that_there_is_none_of_stays_none():
    events = decode(json.dumps({"status": "succeeded", "result": RESULT | {"d_prime": None}}).encode())
    assert events[0].values[-1] == 0
    assert render(events)["result"]["d_prime"] is None


def test_everything_that_a_job_may_say_has_mass_at_most_one():
    """A row has two numbers or seven, and which is not coded: the codes of its small ranges must leave room for that."""

    def below(most: int) -> Fraction:
        """The mass of one number from 0 to `most`."""
        total, start = Fraction(0), 1
        while start <= most + 1:
            end = min(2 * start - 1, most + 1)
            total += Fraction(end - start + 1, 2 ** elias_delta_bits(start))
            start = end + 1
        return total

    highest = steering._fixed_point(steering.STATISTIC_MAX)
    short = below(len(STATUSES) - 1) * below(steering.PROGRESS_STEPS)
    long = short * below(1023) * below(highest) ** len(steering.STATISTICS)
    ending = Ending(outcome=Outcome.STOP, numbers=())
    framing = Fraction(1, 2 ** ending_bits(idle_ticks=0, text_bytes=0, ending=ending, tools_declared=0))
    others = sum(
        Fraction(1, 2 ** ending_bits(idle_ticks=0, text_bytes=0, ending=Ending(outcome=outcome), tools_declared=0))
        for outcome in Outcome
        if not outcome.complete
    )
    assert framing * (short + long) + others <= 1
