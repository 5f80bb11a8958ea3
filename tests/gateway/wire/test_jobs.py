"""Jobs through the gateway: a closed set of words, rows of rounded numbers, and progress in whole percent."""

import copy
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.dialect import Identity, ModelRules
from gateway.wire.handles import model_mark
from gateway.wire.jobs import (
    STATUSES,
    STEPS_MAX,
    JobDecoder,
    JobEventsDecoder,
    JobEventsRenderer,
    JobRenderer,
    events_call,
    job_call,
    job_id_of,
    new_job_id,
)
from gateway.wire.rejections import JOB_FAULTS
from gateway.wire.results import JOB_KINDS, RESULTS
from policy.canonical import Finish, Malformed, Numbers, Reached
from policy.codelength import numbers_bits
from policy.limits import JOB_BYTES_MAX, JOB_EVENTS_BYTES_MAX, RESULT_CANDIDATES_MAX
from policy.release import Ending, Outcome, Release

RULES = ModelRules(name="m", usage=True, token_ids=False, tokens_max=4096, tokens_default=512)
IDENTITY = Identity(id="abc", created_s=1, seed=2)

# On the grid, so that each comes back as it was.
steps = st.integers(0, 1000)
thousandths, shares = steps.map(lambda step: step / 1000), steps.map(lambda step: step / 1000)
signed = st.integers(-(10**6), 10**6).map(lambda step: step / 1000)
hundredths = st.integers(-(10**6), 10**6).map(lambda step: step / 100)
scales = st.integers(-(10**6), 10**6).map(lambda step: step / 10_000)
layers, positions, counts = st.integers(0, 1023), st.none() | st.integers(-99, 99), st.integers(0, 10**6)
RESULT = {
    "extract": st.fixed_dictionaries(
        {
            "layers": st.lists(
                st.fixed_dictionaries(
                    {
                        "layer": layers,
                        "norm": hundredths,
                        "residual_norm": hundredths,
                        "mean_pairwise_cosine": st.none() | hundredths,
                        "d_prime": st.none() | hundredths,
                    }
                ),
                max_size=3,
            ),
            "selected_layer": layers,
            "position": positions,
        }
    ),
    "select": st.fixed_dictionaries(
        {
            "layer": layers,
            "position": positions,
            "score": signed,
            "candidates": st.lists(
                st.fixed_dictionaries(
                    {
                        "layer": layers,
                        "position": positions,
                        "score": signed,
                        "bypass": st.none() | signed,
                        "induce": st.none() | signed,
                        "kl_nats": st.none() | thousandths,
                        "is_eligible": st.booleans(),
                    }
                ),
                max_size=3,
            ),
        }
    ),
    "calibrate": st.fixed_dictionaries(
        {
            "scale": scales,
            "kl_nats": thousandths,
            "kl_mean_nats": thousandths,
            "relative_dose": thousandths,
            "evaluations": counts,
        }
    ),
    "evaluate": st.fixed_dictionaries(
        {
            "points": st.lists(
                st.fixed_dictionaries(
                    {
                        "scale": scales,
                        "prompts": counts,
                        "refusal_rate": st.none() | shares,
                        "kl_mean_nats": st.none() | thousandths,
                        "kl_p95_nats": st.none() | thousandths,
                        "cross_entropy_nats": st.none() | thousandths,
                        "propensity": st.none() | signed,
                        "relative_dose": thousandths,
                    }
                ),
                max_size=3,
            ),
            "sign_symmetry": st.none() | signed,
            "steerability": st.none() | st.fixed_dictionaries({"mean": signed, "sd": signed, "share_negative": shares}),
            "bayes": st.none() | st.fixed_dictionaries({"worse": shares, "equivalent": shares, "better": shares}),
        }
    ),
    "orthogonalize": st.fixed_dictionaries({"matrices_changed": counts, "logit_difference_max": thousandths}),
}
EXTRACTED = {
    "layers": [{"layer": 3, "norm": 1.25, "residual_norm": 20.0, "mean_pairwise_cosine": -0.126, "d_prime": 4.0}],
    "selected_layer": 3,
    "position": None,
}
kinds_and_results = st.sampled_from(JOB_KINDS).flatmap(lambda kind: st.tuples(st.just(kind), RESULT[kind]))


def job_of(kind="extract"):
    return new_job_id(kind, RULES, IDENTITY)


def decode(body, kind="extract"):
    decoder = JobDecoder(kind)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    for at in range(0, len(data), 7):
        assert list(decoder.feed(data[at : at + 7])) == []
    return list(decoder.eof())


def rendered(events, kind="extract") -> bytes:
    ending = Ending(outcome=events[-1].outcome, numbers=events[0].values)
    return JobRenderer(job_of(kind)).release(Release(idle_ticks=0, quanta=0, text="", ending=ending))


def succeeded(result):
    return {"status": "succeeded", "progress": 1, "result": result}


@given(kinds_and_results)
def test_a_result_comes_back_as_it_was_and_nothing_with_it(case):
    kind, result = case
    body = {"id": "secret", "kind": "secret", "created_s": 99, "error": {"message": "secret"}} | succeeded(result)
    shown = json.loads(rendered(decode(body, kind), kind))
    head = {"id": job_of(kind).text, "object": "job", "kind": kind, "status": "succeeded", "progress": 1.0}
    assert shown == head | {"result": result}


@given(kinds_and_results, st.randoms(use_true_random=False))
def test_what_a_client_is_shown_is_a_function_of_the_numbers_that_are_charged(case, coin):
    kind, result = case
    plain = decode(succeeded(result), kind)
    disguise = decode(disguised(succeeded(result), coin).encode(), kind)
    assert disguise == plain
    assert rendered(disguise, kind) == rendered(plain, kind)


def disguised(value, coin: random.Random) -> str:
    """The same statistics in other JSON: keys in another order and more of them, digits beyond the grid, other spellings."""
    if isinstance(value, dict):
        members = [(name, disguised(member, coin)) for name, member in value.items()]
        members += [(f"covert{coin.getrandbits(40)}", json.dumps("x" * coin.getrandbits(4)))]
        coin.shuffle(members)
        return "{" + " , ".join(f'"{name}":{member}' for name, member in members) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(disguised(member, coin) for member in value) + " ]"
    if isinstance(value, int) and not isinstance(value, bool):
        return coin.choice([str(value), f"{value}.0", f"{value}.000e0"])
    if isinstance(value, float):
        return coin.choice([repr(value), f"{value:.12f}"] + ([repr(value + 1e-10)] if 0 < value < 1 else []))
    return json.dumps(value)


@given(kinds_and_results, kinds_and_results)
def test_different_results_have_different_numbers_so_each_has_a_price_of_its_own(one, other):
    if one[0] == other[0]:
        same = decode(succeeded(one[1]), one[0])[0] == decode(succeeded(other[1]), other[0])[0]
        assert same == (one[1] == other[1])


@given(kinds_and_results, st.data())
def test_a_result_with_a_number_out_of_place_is_malformed(case, data):
    kind, result = case
    broken = copy.deepcopy(result)
    places = list(_places(broken))
    where, name = data.draw(st.sampled_from(places))
    where[name] = data.draw(st.sampled_from([1e300, -1e300, "1", [1], 10**30, {"x": 1}]))
    with pytest.raises(Malformed):
        decode(succeeded(broken), kind)


def _places(value):
    """Every number of a result, by the object that holds it. Null where there might be one counts."""
    for name, member in value.items():
        if isinstance(member, list):
            for row in member:
                yield from _places(row)
        elif isinstance(member, dict):
            yield from _places(member)
        else:
            yield value, name


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_a_job_that_succeeded_has_a_result_of_its_kind(kind):
    for result in (None, {}, [], 7, {"layer": 1}):
        with pytest.raises(Malformed):
            decode(succeeded(result), kind)


def test_a_result_has_no_more_rows_than_could_be_asked_for():
    row = {"layer": 1, "score": 1, "is_eligible": True}
    result = {"layer": 1, "score": 1, "candidates": [row] * RESULT_CANDIDATES_MAX}
    decode(succeeded(result), "select")
    with pytest.raises(Malformed):
        decode(succeeded(result | {"candidates": [row] * (RESULT_CANDIDATES_MAX + 1)}), "select")


@pytest.mark.parametrize("status", ["queued", "running", "cancelled"])
def test_a_job_without_a_result_says_a_word_and_its_progress_in_percent(status):
    body = {"status": status, "progress": 0.4567, "result": EXTRACTED, "error": {"code": "unknown_vector"}}
    events = decode(body)
    assert events == [Numbers((STATUSES.index(status), 46)), Finish(Outcome.STOP)]
    assert json.loads(rendered(events)) == {
        "id": f"job-extract-{model_mark('m')}-abc",
        "object": "job",
        "kind": "extract",
        "status": status,
        "progress": 0.46,
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"code": "degenerate", "message": "secret"}, "degenerate"),
        ({"code": "covert", "message": "secret"}, "job_failed"),
        ({"code": ["x"]}, "job_failed"),
        (None, "job_failed"),
    ],
)
def test_why_a_job_failed_is_one_of_a_closed_list(error, code):
    shown = json.loads(rendered(decode({"status": "failed", "error": error})))
    assert shown["error"]["code"] == code
    assert "secret" not in json.dumps(shown)
    assert "result" not in shown


def test_every_reason_for_a_failure_comes_through():
    for code, message in JOB_FAULTS[1:]:
        shown = json.loads(rendered(decode({"status": "failed", "error": {"code": code}})))
        assert shown["error"] == {"code": code, "message": message}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"status": "hacked"}',
        b'{"status": ["running"]}',
        b'{"status": "running", "progress": 2}',
        b'{"status": "running", "progress": NaN}',
        b'{"status": "running", "progress": 1e999}',
        b'{"x": ' + b"[" * 100_000,
    ],
    ids=range(9),
)
def test_what_is_no_job_is_malformed(body):
    with pytest.raises(Malformed):
        decode(body)
    with pytest.raises(Malformed):
        list(JobEventsDecoder("extract").feed(b"data: " + body + b"\n\n"))


def test_a_job_over_the_limit_is_malformed():
    decoder = JobDecoder("extract")
    decoder.feed(b" " * JOB_BYTES_MAX)
    with pytest.raises(Malformed, match="over"):
        decoder.feed(b" ")


def test_a_longer_result_costs_more():
    few, many = (decode(succeeded(EXTRACTED | {"layers": EXTRACTED["layers"] * count}))[0].values for count in (1, 30))
    assert numbers_bits(many) > numbers_bits(few) + 29 * 20


# --- ids


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_a_jobs_id_says_its_kind_and_leads_to_its_model(kind):
    job = job_of(kind)
    assert job_id_of(job.text) == job
    assert (job.kind, job.mark) == (kind, model_mark("m"))


@pytest.mark.parametrize(
    "text", ["", "job-62c66a7a-abc", "job-covert-62c66a7a-abc", "job-extract-62c66a7a-", "job-extract-62c66a7a-A/../b"]
)
def test_what_is_no_job_id_is_none(text):
    with pytest.raises(ValueError, match="no job id"):
        job_id_of(text)


def test_a_job_is_asked_for_in_its_tenants_own_space():
    mine, theirs = (job_call(job_of(), RULES, tenant=tenant) for tenant in ("acme", "other"))
    assert mine.upstream_path.startswith("/v1/jobs/")
    assert mine.upstream_path.endswith("-" + job_of().text)
    assert mine.upstream_path != theirs.upstream_path
    assert mine.stateful
    assert (mine.upstream_method, mine.upstream_body) == ("GET", b"")
    cancelled = job_call(job_of(), RULES, tenant="acme", method="DELETE")
    assert (cancelled.upstream_method, cancelled.upstream_path) == ("DELETE", mine.upstream_path)
    events = events_call(job_of(), RULES, tenant="acme")
    assert (events.stream, events.upstream_path) == (True, mine.upstream_path + "/events")


# --- events


def event(**job) -> bytes:
    return b"data: " + json.dumps(job).encode() + b"\n\n"


STREAM = (
    event(status="queued", progress=0)
    + b": heartbeat\n\n"
    + event(status="running", progress=0)
    + event(status="running", progress=0.301)
    + event(status="running", progress=0.302)
    + event(status="succeeded", progress=1, result=EXTRACTED)
    + event(status="running", progress=0.5)
)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_a_stream_is_steps_and_then_the_last_state_however_it_was_split(sizes):
    decoder, events, at = JobEventsDecoder("extract"), [], 0
    while at < len(STREAM):
        size = sizes[at % len(sizes)]
        events += decoder.feed(STREAM[at : at + size])
        if events and isinstance(events[-1], Finish):
            break
        at += size
    assert [step.step for step in events[:-2]] == [1, 2, 32, 32]
    assert events[-2:] == decode(succeeded(EXTRACTED))


def test_the_last_step_is_the_ladders_end():
    (reached,) = JobEventsDecoder("extract").feed(event(status="running", progress=1))
    assert reached == Reached(STEPS_MAX)


def test_a_stream_that_ends_before_its_job_is_malformed():
    decoder = JobEventsDecoder("extract")
    list(decoder.feed(event(status="running", progress=0.5)))
    with pytest.raises(Malformed):
        decoder.eof()


def test_a_stream_without_an_end_is_malformed_at_its_limit():
    endless = event(status="running", progress=0.5) * (JOB_EVENTS_BYTES_MAX // 40)
    with pytest.raises(Malformed):
        list(JobEventsDecoder("extract").feed(endless))


def test_events_are_whole_jobs_rendered_from_steps():
    renderer = JobEventsRenderer(job_of())
    shown = [renderer.release(Release(idle_ticks=0, quanta=quanta, text="")) for quanta in (1, 1, 42)]
    numbers = decode(succeeded(EXTRACTED))[0].values
    ending = Ending(outcome=Outcome.STOP, numbers=numbers)
    shown.append(renderer.release(Release(idle_ticks=0, quanta=0, text="", ending=ending)))
    jobs = [json.loads(line.removeprefix(b"data: ")) for line in shown]
    assert [(job["status"], job["progress"]) for job in jobs] == [
        ("queued", 0.0),
        ("running", 0.0),
        ("running", 0.42),
        ("succeeded", 1.0),
    ]
    assert jobs[-1] == json.loads(rendered(decode(succeeded(EXTRACTED))))
    assert all(job["id"] == job_of().text for job in jobs)


def test_a_stream_that_fails_says_so_like_any_other():
    failed = Release(idle_ticks=0, quanta=0, text="", ending=Ending(outcome=Outcome.TIMEOUT))
    said = JobEventsRenderer(job_of()).release(failed)
    assert json.loads(said.removeprefix(b"data: "))["error"]["code"] == "upstream_timeout"


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_every_layout_reads_back_exactly_the_numbers_that_it_makes(kind):
    @given(RESULT[kind])
    def check(result):
        numbers = iter(tuple(RESULTS[kind].pack(result)))
        assert RESULTS[kind].unpack(numbers) == result
        assert next(numbers, None) is None

    check()
