from __future__ import annotations

import dataclasses

import pytest
import torch

from inference.limits import METADATA_BYTES_MAX, VECTOR_NORM_MAX
from inference.loading import LoadedModel
from inference.steering.vector import BadVectorError, Kind, StoredVector, check_fits, direction
from tests.inference.stored import D_MODEL, example, numbers, parts


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_can_be_built_and_fits_the_model(kind: Kind, loaded: LoadedModel):
    vector = example(kind)
    assert vector.width == D_MODEL
    assert vector.size_bytes == 4 * sum(tensor.numel() for tensor in vector.tensors.values())
    check_fits(vector, loaded.config)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 2 * VECTOR_NORM_MAX])
def test_no_tensor_of_any_kind_may_hold_nan_infinity_or_huge_numbers(kind: Kind, poison: float):
    for name, tensor in parts(kind)["tensors"].items():
        bad = tensor.clone()
        bad.view(-1)[-1] = poison
        with pytest.raises(BadVectorError) as refused:
            example(kind, tensors={**parts(kind)["tensors"], name: bad})
        assert refused.value.code == "bad_vector"


@pytest.mark.parametrize("kind", Kind)
def test_zero_is_refused_exactly_where_it_would_mean_nothing(kind: Kind):
    for name, tensor in parts(kind)["tensors"].items():
        tensors = {**parts(kind)["tensors"], name: torch.zeros_like(tensor)}
        if name.startswith(("mean", "encoder_bias", "decoder_bias")):
            example(kind, tensors=tensors)
        else:
            with pytest.raises(BadVectorError, match="zero"):
                example(kind, tensors=tensors)


def test_a_direction_too_small_to_be_made_a_unit_in_float32_is_as_good_as_zero():
    with pytest.raises(BadVectorError, match="too small"):
        direction(id="v", values={1: torch.full((D_MODEL,), 1e-30)}, metadata={"model_digest": None})


@pytest.mark.parametrize("kind", Kind)
def test_missing_unknown_and_misshapen_tensors_are_refused(kind: Kind):
    tensors = parts(kind)["tensors"]
    for name, tensor in tensors.items():
        without = {other: value for other, value in tensors.items() if other != name}
        for changed in (without, {**tensors, name: tensor.unsqueeze(0)}, {**tensors, name: tensor.double()}):
            with pytest.raises(BadVectorError) as refused:
                example(kind, tensors=changed)
            assert refused.value.code == "wrong_shape"
        if len(tensors) > 1:
            with pytest.raises(BadVectorError):
                example(kind, tensors={**tensors, name: tensor[..., :-1]})
    for extra in ("direction.9", "extra", "direction.-1"):
        with pytest.raises(BadVectorError):
            example(kind, tensors={**tensors, extra: numbers(D_MODEL)})


@pytest.mark.parametrize("layers", [(), (3, 3), (7, 3), (-1,), (3,), (3, 7, 9)])
def test_layers_are_ascending_distinct_and_those_of_the_tensors(layers: tuple[int, ...]):
    with pytest.raises(BadVectorError) as refused:
        example(Kind.DIRECTION, layers=layers)
    assert refused.value.code == "wrong_shape"


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"model_digest": None, "x": float("nan")},
        {"model_digest": None, "x": object()},
        {"model_digest": None, "x": "y" * METADATA_BYTES_MAX},
    ],
)
def test_metadata_is_json_of_modest_size_and_names_the_model(metadata):
    with pytest.raises(BadVectorError):
        example(Kind.DIRECTION, metadata=metadata)


@pytest.mark.parametrize("vector_id", ["", "Upper", "../up", "a/b", "-first", "x" * 101, "new\nline", ".hidden"])
def test_an_id_is_a_file_name_that_stays_where_it_is(vector_id: str):
    with pytest.raises(BadVectorError):
        example(Kind.DIRECTION, id=vector_id)


@pytest.mark.parametrize(
    ("metadata", "threshold", "is_right"),
    [
        ({"activation": "relu"}, False, True),
        ({"activation": "jumprelu"}, True, True),
        ({"activation": "topk", "k": 4}, False, True),
        ({"activation": "jumprelu"}, False, False),
        ({"activation": "relu"}, True, False),
        ({"activation": "relu", "k": 4}, False, False),
        ({"activation": "topk"}, False, False),
        ({"activation": "topk", "k": 0}, False, False),
        ({"activation": "topk", "k": 33}, False, False),
        ({"activation": "topk", "k": True}, False, False),
        ({"activation": "topk", "k": 1.5}, False, False),
        ({"activation": "gelu"}, False, False),
        ({"activation": "relu", "apply_b_dec_to_input": False}, False, True),
        ({"activation": "relu", "apply_b_dec_to_input": True}, False, False),
        ({"activation": "relu", "apply_b_dec_to_input": 1}, False, False),
        ({}, False, False),
    ],
)
def test_a_dictionary_has_what_its_activation_needs_and_nothing_else(metadata, threshold, is_right):
    tensors = {**parts(Kind.SAE)["tensors"], **({"threshold": torch.zeros(32)} if threshold else {})}
    metadata = {"model_digest": None, **metadata}
    if is_right:
        example(Kind.SAE, tensors=tensors, metadata=metadata)
    else:
        with pytest.raises(BadVectorError):
            example(Kind.SAE, tensors=tensors, metadata=metadata)


def test_the_digest_names_what_steering_does_with_it():
    vector = example(Kind.DIRECTION)
    same = dataclasses.replace(vector, id="other", metadata={"model_digest": None, "description": "x"})
    assert same.digest_sha256 == vector.digest_sha256
    tensors = dict(vector.tensors)
    swapped = dataclasses.replace(
        vector, tensors={"direction.3": tensors["direction.7"], "direction.7": tensors["direction.3"]}
    )
    moved = StoredVector(
        id="v",
        kind=Kind.DIRECTION,
        layers=(3, 8),
        tensors={"direction.3": tensors["direction.3"], "direction.8": tensors["direction.7"]},
        metadata=vector.metadata,
    )
    topk = [example(Kind.SAE, metadata={"model_digest": None, "activation": "topk", "k": k}) for k in (1, 2)]
    digests = {one.digest_sha256 for one in (vector, swapped, moved, example(Kind.SAE), *topk)}
    assert len(digests) == 6


def test_an_object_of_other_sizes_does_not_fit_the_model(loaded: LoadedModel):
    small = direction(id="v", values={1: numbers(64)}, metadata={"model_digest": None})
    deep = direction(id="v", values={1: numbers(D_MODEL), 30: numbers(D_MODEL)}, metadata={"model_digest": None})
    heads = example(Kind.HEADS, tensors={"heads.3": numbers(18, 32)})  # the same width, other heads
    for vector, code in ((small, "wrong_dimension"), (deep, "bad_layer"), (heads, "wrong_dimension")):
        with pytest.raises(BadVectorError) as refused:
            check_fits(vector, loaded.config)
        assert refused.value.code == code
