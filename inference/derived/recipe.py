"""What a derived model is, on disk: a recipe of a few KB, not its weights.

The directions taken out and the digest of the model they were taken out of say everything; the weights are made again
at start from the file that is read anyway, in about the time it would take to read them. So half a gigabyte is neither
written nor kept twice, and no file of weights lies in the state directory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

from torch import Tensor

from inference.steering import safetensors_file
from inference.steering.safetensors_file import FileError, json_object
from inference.steering.vector import ID_PATTERN

_METADATA_KEY = "weir.derived_model"
_METHOD = "orthogonalize"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """`basis` [k, d_model] float32, orthonormal: no matrix of the model writes into its span any more."""

    id: str
    base_digest_sha256: str
    basis: Tensor
    vectors: tuple[tuple[str, int, str], ...]  # id, layer and digest of the directions that the basis was made of
    created_s: int
    logit_difference_max: float  # against ablation by hooks, when it was made

    @property
    def digest_sha256(self) -> str:
        """Of the model that comes out: method, base, basis."""
        total = hashlib.sha256(f"{_METHOD} v1 {self.base_digest_sha256} ".encode())
        total.update(self.basis.contiguous().numpy().astype("<f4").tobytes())
        return total.hexdigest()

    def provenance(self) -> dict[str, object]:
        return {
            "method": _METHOD,
            "base_digest": self.base_digest_sha256,
            "digest": self.digest_sha256,
            "vectors": [{"id": name, "layer": layer, "digest": digest} for name, layer, digest in self.vectors],
            "directions": int(self.basis.shape[0]),
            "logit_difference_max": self.logit_difference_max,
        }

    def file_content(self) -> bytes:
        document = {**self.provenance(), "created_s": self.created_s}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return safetensors_file.write({"basis": self.basis}, {_METADATA_KEY: text})


def recipe_of(content: bytes, *, model_id: str) -> Recipe:
    """The inverse of `file_content`. Raises FileError."""
    tensors, texts = safetensors_file.read(content)
    document = json_object(texts.get(_METADATA_KEY, "{}"))
    try:
        recipe = Recipe(
            id=model_id,
            base_digest_sha256=str(document["base_digest"]),
            basis=tensors["basis"],
            vectors=tuple((str(one["id"]), int(one["layer"]), str(one["digest"])) for one in document["vectors"]),
            created_s=int(document["created_s"]),
            logit_difference_max=float(document["logit_difference_max"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FileError(f"the file is no recipe of a derived model: {error!r}") from error
    basis = recipe.basis.double()
    if basis.dim() != 2 or not ID_PATTERN.fullmatch(model_id) or document.get("digest") != recipe.digest_sha256:
        raise FileError("the recipe is not what its digest says")
    if float((basis @ basis.T - basis.new_ones(basis.shape[0]).diag()).abs().max()) > 1e-5:
        raise FileError("the basis is not orthonormal")
    return recipe
