"""Codes that a backend may name: closed lists, so that a rejection helps its reader and carries few bits.

The texts are the gateway's own. A code's place in its list is what is charged, so new ones come last.
"""

from __future__ import annotations

# In the body of a 4xx: what is wrong with a request.
REJECTIONS: tuple[tuple[str, str], ...] = (
    ("rejected_by_model_server", "The model server rejected this request."),
    ("context_length_exceeded", "The prompt and max_tokens together exceed the model's context length."),
    ("kv_memory_exceeded", "The prompt and max_tokens together exceed the model server's memory for one request."),
    ("empty_prompt", "The prompt is empty."),
    ("text_too_long", "A contrast text is longer than the model's context length."),
    ("unknown_vector", "A steering vector id does not exist; POST /v1/steering/extract makes one."),
    ("unknown_op", "The steering operation is not one that this model server knows."),
    ("bad_scale", "A steering scale is out of range, missing, or given to an operation that has none."),
    ("bad_layers", "A steering layer does not exist in this model, stands twice, or is none of the vector's."),
    ("bad_layer", "The layer to extract at does not exist in this model."),
    ("wrong_dimension", "A steering vector's dimension is not the model's residual width."),
    ("wrong_model", "A steering vector was made for another model."),
    ("wrong_kind", "A stored object is of a kind that this operation does not work with."),
    ("bad_point", "The operation does not work at this point of a block."),
    ("unknown_point", "The point is not one that this model server knows."),
    ("bad_params", "A parameter of an operation is missing, of the wrong type or out of range."),
    ("bad_selector", "A selector picks nothing, or something that does not exist."),
    ("bad_gate", "A gate's threshold or layer is out of range."),
    ("bad_feature", "The dictionary has no such feature."),
    ("unknown_mean", "The vector has no mean of this name; it has those of the sides that it was made from."),
    ("conflict", "Two operations work at the same place, and 'conflict' says that this is an error."),
    ("unknown_conflict", "The way to settle conflicts is not one that this model server knows."),
    ("too_many_vectors", "The request names more vectors than the model server takes."),
    ("too_many_operations", "The request asks for more operations at one place than the model server runs."),
    ("dependent_directions", "Directions that are to span a space are nearly the same."),
    ("layers_differ", "Vectors that are to be combined belong to different layers."),
    ("several_directions", "A vector of several layers stands where one direction is needed."),
    ("bad_vector", "The vector would be zero, too large, or no number."),
    ("wrong_shape", "Vectors of different shapes cannot be combined."),
    ("model_not_found", "The derived model does not exist; POST /v1/steering/orthogonalize makes one."),
    ("no_scale", "No operation of this spec has a scale that could be calibrated."),
    ("no_such_token", "A text has no token at this position."),
    ("not_enough_texts", "The method needs more texts on each side."),
    ("empty_text", "A text has no tokens."),
    ("too_many_activations", "The texts at these layers are more activations than the model server holds."),
    ("too_many_candidates", "Layers times positions are more candidates than the model server judges."),
    ("too_many_answers", "There are more answers on a side than can be tried on every prompt."),
    ("too_many_passages", "There are more pairs of prompts and answers than the model server compares."),
    ("unknown_field", "A parameter is not one that this method knows."),
    ("not_paired", "The method compares pairs, and these texts are none."),
    ("steering_diverged", "The steered activations grew until they were no numbers; use less."),
    ("invalid_value", "A field does not fit the others, or this model."),
)

# In a job that failed: what came in its way.
JOB_FAULTS: tuple[tuple[str, str], ...] = (
    ("job_failed", "The job failed."),
    ("interrupted", "The model server ended while the job was waiting or running."),
    ("degenerate", "The two sides have the same activations, so there is no direction between them."),
    ("nothing_eligible", "No candidate satisfies the conditions."),
    ("unreachable", "No scale within the limits reaches the target."),
    ("not_finite", "The steered model's distributions are no numbers."),
    ("vector_exists", "A vector of this id was stored while the job waited or ran."),
    ("model_exists", "A derived model of this id was made while the job waited or ran."),
    ("store_full", "The model server stores no more vectors."),
    ("models_full", "The model server keeps no more derived models."),
    ("weights_disagree", "The derived model's logits differ from those of ablation by more than rounding."),
    ("weights_gone", "The model's file can no longer be read."),
)


def code_index(codes: tuple[tuple[str, str], ...], code: object) -> int:
    """The position of a backend's code in a list; 0 for all others."""
    for index, (known, _) in enumerate(codes):
        if known == code:
            return index
    return 0
