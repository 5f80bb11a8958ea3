from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.steering.combining import basis, combine
from inference.steering.vector import BadVectorError, Kind, StoredVector, direction
from tests.inference.stored import example, numbers


def a(vector_id: str, *layers: int, seed: int, digest: str | None = None) -> StoredVector:
    values = {layer: numbers(64, seed=100 * seed + layer) for layer in layers}
    return direction(id=vector_id, values=values, metadata={"model_digest": digest})


def test_a_weighted_sum_is_taken_layer_by_layer():
    first, second = a("a", 3, 7, seed=1), a("b", 3, 7, seed=2)
    made = combine("c", [(first, 2.0), (second, -0.5)], orthogonal_to=[], normalize=False)
    for layer in (3, 7):
        name = f"direction.{layer}"
        assert torch.allclose(made.tensors[name], 2 * first.tensors[name] - 0.5 * second.tensors[name], atol=1e-6)
    assert [term["weight"] for term in made.metadata["terms"]] == [2.0, -0.5]
    assert made.metadata["terms"][0]["digest"] == first.digest_sha256


@settings(max_examples=50, deadline=None)
@given(seeds=st.lists(st.integers(0, 10**6), min_size=2, max_size=6, unique=True), normalize=st.booleans())
def test_what_is_orthogonal_to_others_has_no_part_along_any_of_them(seeds: list[int], normalize: bool):
    vectors = [
        direction(id=f"v{seed}", values={3: numbers(64, seed=seed)}, metadata={"model_digest": None}) for seed in seeds
    ]
    first, *away = vectors
    # Not only orthogonal ones: two of them lie close together.
    near = away[0].tensors["direction.3"] + 1e-3 * numbers(64, seed=77)
    away.append(direction(id="near", values={3: near}, metadata={"model_digest": None}))
    made = combine("c", [(first, 1.0)], orthogonal_to=away, normalize=normalize).tensors["direction.3"].double()
    for vector in away:
        other = vector.tensors["direction.3"].double()
        assert abs(float(made @ other / made.norm() / other.norm())) < 1e-6
    if normalize:
        assert float(made.norm()) == pytest.approx(1.0, abs=1e-6)


def test_a_vector_of_one_layer_is_taken_out_of_every_layer():
    made = combine("c", [(a("a", 3, 7, seed=1), 1.0)], orthogonal_to=[a("b", 12, seed=2)], normalize=False)
    other = a("b", 12, seed=2).tensors["direction.12"]
    assert all(abs(float(made.tensors[f"direction.{layer}"] @ other)) < 1e-4 for layer in (3, 7))


def test_the_basis_is_orthonormal_and_knows_dependent_vectors():
    first, second = numbers(64, seed=1), numbers(64, seed=2)
    rows = basis([first, 3 * first, second, first - second])
    assert rows.shape == (2, 64)
    assert torch.allclose(rows @ rows.T, torch.eye(2, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize(
    ("terms", "away", "code"),
    [
        ([(a("a", 3, seed=1), 1.0), (a("b", 4, seed=2), 1.0)], [], "layers_differ"),
        ([(a("a", 3, seed=1), 1.0)], [a("b", 4, 5, seed=2)], "layers_differ"),
        ([(a("a", 3, seed=1), 1.0), (a("a", 3, seed=1), -1.0)], [], "degenerate"),
        ([(a("a", 3, seed=1), 0.0)], [], "degenerate"),
        ([(a("a", 3, seed=1), 1.0)], [a("a", 3, seed=1)], "degenerate"),
        ([(a("a", 3, seed=1, digest="0" * 64), 1.0)], [a("b", 3, seed=2, digest="1" * 64)], "wrong_model"),
        ([(a("a", 3, seed=1), 1.0), (example(Kind.DIRECTION), 1.0)], [], "wrong_dimension"),
        ([(example(Kind.ERASER), 1.0)], [], "wrong_kind"),
        ([(example(Kind.POSITIONAL), 1.0)], [], "wrong_kind"),
    ],
)
def test_what_cannot_be_combined_is_refused_with_the_reason(terms, away, code):
    with pytest.raises(BadVectorError) as refused:
        combine("c", terms, orthogonal_to=away, normalize=True)
    assert refused.value.code == code


def test_the_model_of_a_combination_is_that_of_its_parts():
    parts = [(a("a", 3, seed=1), 1.0), (a("b", 3, seed=2, digest="0" * 64), 1.0)]
    assert combine("c", parts, orthogonal_to=[], normalize=False).metadata["model_digest"] == "0" * 64
