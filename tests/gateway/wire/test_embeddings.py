"""Embeddings: quantised before anything else is done with them, all or none, and rendered from what was quantised."""

import base64
import contextlib
import json
import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire import embeddings
from gateway.wire.dialect import Call, Identity, ModelRules
from gateway.wire.embeddings import EmbeddingsDecoder
from policy.canonical import Embedded, Finish, Malformed, UsageReport
from policy.codelength import release_bits
from policy.limits import ANSWER_JSON_BYTES_MAX, EMBEDDING_DIMENSIONS_MAX, EMBEDDING_INPUTS_MAX
from policy.refusal import Reason, Refused
from policy.release import Ending, Outcome, Release, Usage, Vectors

IDENTITY = Identity(id="abc", created_s=1_700_000_000, seed=4711)


def rules(embeddings="int8", dimensions=3):
    return ModelRules(
        name="m",
        usage=True,
        token_ids=False,
        tokens_max=9,
        tokens_default=9,
        embeddings=embeddings,
        dimensions=dimensions,
    )


def call(fields=(), rules=rules()):  # noqa: B008
    request = embeddings.parse_request(json.dumps({"model": "m", "input": "hi"} | dict(fields)).encode())
    return request if isinstance(request, Refused) else embeddings.sanitise(request, rules, IDENTITY, tenant="acme")


def refusal(fields=(), **more):
    refused = call(fields, **more)
    assert isinstance(refused, Refused), refused
    return refused


def decode(body, *, count=1, bits=8, dimensions=3, usage=True):
    decoder = EmbeddingsDecoder(count=count, bits=bits, dimensions=dimensions, usage=usage)
    list(decoder.feed(body if isinstance(body, bytes) else json.dumps(body).encode()))
    return list(decoder.eof())


def rows(*vectors):
    return {"data": [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]}


# Requests.


@pytest.mark.parametrize(("given", "asked"), [("hi", ["hi"]), (["a", "b"], ["a", "b"])])
def test_a_backend_is_asked_for_floats_whatever_the_client_wants(given, asked):
    for encoding in ("float", "base64"):
        made = call({"input": given, "encoding_format": encoding, "user": "u"})
        assert isinstance(made, Call)
        assert json.loads(made.upstream_body) == {"model": "m", "input": asked, "encoding_format": "float"}
        assert (made.upstream_path, made.stream) == ("/v1/embeddings", False)


def test_a_model_that_gives_no_embeddings_has_no_such_route():
    refused = refusal(rules=rules("refuse"))
    assert refused.reason is Reason.UNKNOWN_ROUTE
    assert "embeddings: int8" in refused.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"), ({"input": []}, "input"), ({"input": [""]}, "input[0]"), ({"input": [1, 2]}, "input[0]"),
        ({"input": [[1]]}, "input[0]"), ({"input": ["x"] * (EMBEDDING_INPUTS_MAX + 1)}, "input"),
        ({"encoding_format": "bytes"}, "encoding_format"), ({"dimensions": 2}, "dimensions"), ({"dimensions": 0}, "dimensions"),
    ],
)  # fmt: skip
def test_a_value_out_of_bounds_is_refused_and_the_message_says_where(fields, param):
    refused = refusal(fields)
    assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, param)


def test_dimensions_may_be_named_if_they_are_those_that_policy_fixes():
    assert isinstance(call({"dimensions": 3}), Call)
    assert refusal({"dimensions": 3}, rules=rules(dimensions=None)).param == "dimensions"


@pytest.mark.parametrize("field", ["logprobs", "truncate_prompt_tokens", "embed_dtype", "priority"])
def test_a_field_off_the_list_is_refused_by_its_name(field):
    refused = refusal({field: 1})
    assert (refused.reason, refused.param) == (Reason.UNSUPPORTED_FIELD, field)


@pytest.mark.parametrize("kind", ["int8", "binary"])
@pytest.mark.parametrize("dimensions", [1, 7, 384, None])
@pytest.mark.parametrize("count", [1, 3])
def test_the_reserve_covers_the_largest_answer(kind, dimensions, count):
    made = call({"input": ["x"] * count}, rules=rules(kind, dimensions))
    vectors = Vectors(
        bits=8 if kind == "int8" else 1,
        dimensions_coded=dimensions is None,
        rows=(bytes(dimensions or EMBEDDING_DIMENSIONS_MAX),) * count,
    )
    ending = Ending(outcome=Outcome.STOP, vectors=vectors, usage=Usage(prompt_tokens=2**31 - 1, completion_tokens=0))
    price = release_bits(Release(idle_ticks=0, quanta=0, text="", ending=ending), tools_declared=0)
    assert price <= 8 * made.answer_bytes_max + 128


# What a backend says.


def test_vectors_are_quantised_in_the_order_of_the_inputs():
    body = {"data": [{"index": 1, "embedding": [0, 0, -2]}, {"index": 0, "embedding": [1.0, 0.5, -1e0]}]}
    vectors = Vectors(bits=8, dimensions_coded=False, rows=(bytes([254, 191, 0]), bytes([127, 127, 0])))
    assert decode(body, count=2) == [Embedded(vectors), Finish(Outcome.STOP)]


def test_signs_are_one_bit_each():
    (embedded, _) = decode(rows([0.5, -0.5, -0.0]), bits=1)
    assert embedded.vectors == Vectors(bits=1, dimensions_coded=False, rows=(bytes([1, 0, 1]),))


def test_dimensions_that_policy_leaves_open_are_the_backends_and_coded():
    (embedded, _) = decode(rows([1.0, 2.0]), dimensions=None)
    assert embedded.vectors.dimensions_coded
    assert len(embedded.vectors.rows[0]) == 2


def test_usage_counts_what_was_read_and_nothing_that_was_generated():
    body = rows([1, 2, 3]) | {"usage": {"prompt_tokens": 5, "total_tokens": 99}}
    assert decode(body)[1] == UsageReport(Usage(prompt_tokens=5, completion_tokens=0))
    assert len(decode(body, usage=False)) == 2


def test_rows_without_an_index_are_in_the_order_of_the_inputs():
    body = {"data": [{"embedding": [1, 0, 0]}, {"embedding": [0, 1, 0]}]}
    assert decode(body, count=2) == decode(rows([1, 0, 0], [0, 1, 0]), count=2)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"{}", b'{"data": []}', b"[" * 100_000,
        rows([1, 2]), rows([1, 2, 3, 4]), rows([]), rows([1, 2, 3], [1, 2, 3]), {"data": [{"index": 1, "embedding": [1, 2, 3]}]},
        {"data": [{"index": -1, "embedding": [1, 2, 3]}]}, rows([1, 2, "3"]), rows([1, 2, None]), rows([1, 2, True]),
        rows("AAAA"), rows([1, 2, [3]]),
        b'{"data": [{"index": 0, "embedding": [1, 2, NaN]}]}', b'{"data": [{"index": 0, "embedding": [1, 2, Infinity]}]}',
        b'{"data": [{"index": 0, "embedding": [1, 2, 1e999]}]}', rows([1, 2, 10**400]),
        rows([1, 2, 3]) | {"usage": {"prompt_tokens": -1}},
    ],
    ids=range(22),
)  # fmt: skip
def test_what_is_not_one_vector_for_each_input_is_malformed(body):
    with pytest.raises(Malformed):
        decode(body)


def test_two_rows_for_one_input_are_malformed():
    body = {"data": [{"index": 0, "embedding": [1, 2, 3]}, {"index": 0, "embedding": [1, 2, 3]}]}
    with pytest.raises(Malformed):
        decode(body, count=2)


def test_rows_of_different_lengths_are_malformed():
    with pytest.raises(Malformed, match="length"):
        decode(rows([1, 2], [1, 2, 3]), count=2, dimensions=None)


def test_rows_over_the_limit_are_malformed():
    with pytest.raises(Malformed, match="length"):
        decode(rows([1.0] * (EMBEDDING_DIMENSIONS_MAX + 1)), dimensions=None)


def test_a_body_over_the_limit_is_malformed_at_once():
    decoder = EmbeddingsDecoder(count=1, bits=8, dimensions=3, usage=True)
    decoder.feed(b" " * ANSWER_JSON_BYTES_MAX)
    with pytest.raises(Malformed, match="over"):
        decoder.feed(b" ")


@settings(max_examples=200)
@given(st.binary(max_size=120))
def test_no_bytes_do_anything_but_vectors_or_malformed(data):
    with contextlib.suppress(Malformed):
        decode(data)


# What a client gets.


def rendered(vectors, *, usage=None, **fields):
    renderer = call(fields).renderer
    ending = Ending(outcome=Outcome.STOP, vectors=vectors, usage=usage)
    return json.loads(renderer.release(Release(idle_ticks=0, quanta=0, text="", ending=ending)))


@settings(max_examples=100)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=60).filter(lambda v: math.hypot(*v) > 1e-3))
def test_an_int8_embedding_has_unit_length_and_the_direction_of_the_original(values):
    (embedded, _) = decode(rows(values), dimensions=None)
    (item,) = rendered(embedded.vectors)["data"]
    length = math.hypot(*values)
    cosine = sum(a * b / length for a, b in zip(item["embedding"], values, strict=True))
    assert math.hypot(*item["embedding"]) == pytest.approx(1, abs=1e-4)
    assert cosine > 0.9999
    assert not any(value == 0 and math.copysign(1, value) < 0 for value in item["embedding"])


def test_floats_and_base64_say_the_same():
    vectors = Vectors(bits=8, dimensions_coded=False, rows=(bytes([254, 127, 0]), bytes([127, 127, 127])))
    plain = [item["embedding"] for item in rendered(vectors)["data"]]
    packed = [base64.b64decode(item["embedding"]) for item in rendered(vectors, encoding_format="base64")["data"]]
    assert plain[0] == [0.707107, 0.0, -0.707107]
    assert plain[1] == [0.0, 0.0, 0.0]
    assert packed == [struct.pack("<3f", *row) for row in plain]


def test_a_binary_embedding_is_signs():
    vectors = Vectors(bits=1, dimensions_coded=False, rows=(bytes([1, 0, 1]),))
    body = rendered(vectors, usage=Usage(prompt_tokens=5, completion_tokens=0))
    assert body == {
        "object": "list",
        "model": "m",
        "data": [{"object": "embedding", "index": 0, "embedding": [1.0, -1.0, 1.0]}],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }
