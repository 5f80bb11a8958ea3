"""The endpoints that make vectors from texts. Everything that can be wrong is found before a job exists."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any, TypedDict

from aiohttp import web

from inference.chat import TemplateError
from inference.extraction.extraction import Extraction, extract
from inference.extraction.interventions import Interventions
from inference.extraction.methods import ERASERS, PAIRED, PARAMETERS, Method, Params
from inference.extraction.post_instruction import post_instruction_tokens
from inference.extraction.refusal import FIRST_WORDS, Rule
from inference.extraction.samples import Samples
from inference.extraction.selection import By, Selection, extract_selected, select
from inference.jobs.chore import Work
from inference.jobs.job import JobKind
from inference.lab import Lab
from inference.limits import ACTIVATION_VALUES_MAX, SELECT_CANDIDATES_MAX
from inference.loading import LoadedModel
from inference.passages import Positions, TokenIds, Which
from inference.server.body import read_body
from inference.server.errors import bad_request
from inference.server.experiment_schema import Contrast, ExtractRequest, Layers, MethodParams, SelectRequest, Token
from inference.server.jobs import start_job
from inference.server.schema import decode, without_none
from inference.server.service import SERVICE, Service
from inference.server.texts import (
    ContrastTexts,
    contrast_texts,
    samples,
    starts_with_bos,
    template_digest,
)
from inference.server.vectors import refuse_existing
from inference.steering.store import VectorStore

_METHOD_PARAMS = frozenset(field.name for field in dataclasses.fields(Params))
_RULE_PARAMS = frozenset(field.name for field in dataclasses.fields(Rule))


async def extract_vector(request: web.Request) -> web.Response:
    """202 with a queued job."""
    service = request.app[SERVICE]
    service.refuse_if_draining()
    body = decode(await read_body(request), ExtractRequest)
    refuse_existing(service, body.id)
    work = await asyncio.to_thread(_extract_work, body, service)
    return await start_job(service, kind=JobKind.EXTRACT, job_id=body.job_id, work=work)


async def select_vector(request: web.Request) -> web.Response:
    """202 with a queued job."""
    service = request.app[SERVICE]
    service.refuse_if_draining()
    body = decode(await read_body(request), SelectRequest)
    refuse_existing(service, body.id)
    work = await asyncio.to_thread(_select_work, body, service)
    return await start_job(service, kind=JobKind.SELECT, job_id=body.job_id, work=work)


def _extract_work(body: ExtractRequest, service: Service) -> Work:
    loaded = service.loaded
    if (body.layer is None) == (body.layers is None):
        raise bad_request("give either layer or layers", param="layers" if body.layer is not None else "layer")
    asked = [body.layer] if body.layer is not None else body.layers
    layers = checked_layers(asked or "all", loaded, param="layer" if body.layer is not None else "layers")
    if body.method is Method.REFUSAL:
        tokens: list[Token] = ["post_instruction" if body.token is None else body.token]
        selection = _selection(body, layers, tokens, By.REFUSAL, Method.MEAN_DIFFERENCE, loaded, place_param="token")
        return extract_selected(selection, **_tools(service))
    texts = contrast_texts(body, paired=body.paired)
    at = _positions("last" if body.token is None else body.token, body, loaded, param="token")
    if body.token == "all" and body.method not in ERASERS:  # noqa: S105 - a position, no password
        raise bad_request("only erasers are fitted to all tokens", param="token")
    found = samples(texts.everything, chat=body.chat, loaded=loaded)
    if body.method is Method.ACTADD:
        found = _padded_pair(found, body, loaded)
    _check_samples(found, at, layers, body, body.method, loaded, place_param="token")
    params = _checked_params(body.params, body.method, found)
    provenance = _provenance(body, body.method, texts, found, loaded) | {
        "token": "each" if body.method is Method.ACTADD else _token_name(body.token),
        "params": {} if body.params is None else without_none(body.params),
    }
    extraction = Extraction(
        vector_id=body.id,
        method=body.method,
        params=_params(params),
        layers=layers,
        at=at,
        samples=found,
        side_names=texts.side_names,
        provenance=provenance,
    )
    return extract(extraction, lab=Lab(loaded.model), store=service.store)


def _select_work(body: SelectRequest, service: Service) -> Work:
    layers = checked_layers(body.layers, service.loaded, param="layers")
    by = By.REFUSAL if body.method is Method.REFUSAL else body.by
    method = Method.MEAN_DIFFERENCE if body.method is Method.REFUSAL else body.method
    if method in ERASERS or method in (Method.ACTADD, Method.CCS):  # the sides of CCS are no sides of its direction
        raise bad_request(f"{method.value} finds no direction that could be judged by its sides", param="method")
    default: Token = "last" if by is By.D_PRIME else "post_instruction"
    selection = _selection(body, layers, body.tokens or [default], by, method, service.loaded, place_param="tokens")
    return select(selection, **_tools(service))


class _Tools(TypedDict):
    lab: Lab
    store: VectorStore
    interventions: Interventions


def _tools(service: Service) -> _Tools:
    """What selecting works with."""
    loaded = service.loaded
    interventions = Interventions(config=loaded.config, model_digest=loaded.vectors_digest)
    return {"lab": Lab(loaded.model), "store": service.store, "interventions": interventions}


def _selection(
    body: ExtractRequest | SelectRequest,
    layers: tuple[int, ...],
    tokens: Sequence[Token],
    by: By,
    method: Method,
    loaded: LoadedModel,
    *,
    place_param: str,
) -> Selection:
    # Instructions that are refused and instructions that are not have no partners.
    texts = contrast_texts(body, paired=body.paired and (by is not By.REFUSAL or method in PAIRED))
    if len(set(tokens)) != len(tokens) or "all" in tokens:
        raise bad_request("tokens must be distinct places of a text", param=place_param)
    places = tuple(_positions(token, body, loaded, param=place_param, each=True) for token in tokens)
    parts = (texts.train.positive, texts.train.negative, texts.test.positive, texts.test.negative)
    if min(map(len, parts)) < 2:
        message = "every side needs at least two texts to learn from and two held out: of your own texts, every fourth"
        raise bad_request(message, param=texts.train.params[0], code="not_enough_texts")
    if len(layers) * sum(at.rows(at.tokens_min) for at in places) > SELECT_CANDIDATES_MAX:
        message = f"layers times tokens are more than {SELECT_CANDIDATES_MAX} candidates"
        raise bad_request(message, param=place_param, code="too_many_candidates")
    train, test = (samples(part, chat=body.chat, loaded=loaded) for part in (texts.train, texts.test))
    for part in (train, test):
        for at in places:
            _check_samples(part, at, layers, body, method, loaded, place_param=place_param)
    if by is By.REFUSAL and not body.chat:
        raise bad_request("refusals are answers to instructions: selecting by them needs chat", param="chat")
    judged = Method.REFUSAL if by is By.REFUSAL else None
    params = _checked_params(body.params, method, train, judged=judged)
    words = params.get("first_words") or FIRST_WORDS
    provenance = _provenance(body, method, texts, train, loaded) | {
        "params": {} if body.params is None else without_none(body.params),
        "held_out": {"positive": len(test.positive), "negative": len(test.negative)},
    }
    return Selection(
        vector_id=body.id,
        method=method,
        params=_params(params),
        layers=layers,
        places=places,
        train=train,
        test=test,
        by=by,
        rule=Rule(**{name: value for name, value in params.items() if name in _RULE_PARAMS}),
        refusal_ids=_first_ids(words, loaded),
        side_names=texts.side_names,
        provenance=provenance,
    )


def checked_layers(asked: Layers, loaded: LoadedModel, *, param: str) -> tuple[int, ...]:
    """Distinct block outputs, ascending."""
    n_layers = loaded.config.n_layers
    if isinstance(asked, str):
        return tuple(range(n_layers))
    if len(set(asked)) != len(asked):
        raise bad_request("layers must be distinct", param=param, code="bad_layers")
    for layer in asked:
        if not 0 <= layer < n_layers:
            code = "bad_layer" if param == "layer" else "bad_layers"
            message = f"layer {layer} does not exist; block outputs are 0 to {n_layers - 1}"
            raise bad_request(message, param=param, code=code)
    return tuple(sorted(asked))


def _positions(token: Token, body: Contrast, loaded: LoadedModel, *, param: str, each: bool = False) -> Positions:
    """`each`: the post-instruction tokens one by one, instead of their mean."""
    if isinstance(token, int):
        return Positions(which=Which.INDEX, index=token)
    if token != "post_instruction":  # noqa: S105
        return Positions(which={"last": Which.LAST, "mean": Which.MEAN, "all": Which.EVERY}[token])
    if not body.chat:
        raise bad_request("post-instruction tokens are the chat template's: they need chat", param=param)
    try:
        tail = post_instruction_tokens(loaded.template, loaded.tokenizer)
    except TemplateError as error:
        raise bad_request(str(error), param="chat") from error
    if tail == 0:
        raise bad_request("this model's chat template puts nothing behind the instruction", param=param)
    return Positions(which=Which.EACH_OF_TAIL if each else Which.TAIL, tokens=tail)


def _check_samples(
    found: Samples,
    at: Positions,
    layers: Sequence[int],
    body: Contrast,
    method: Method,
    loaded: LoadedModel,
    *,
    place_param: str,
) -> None:
    param = "dataset" if body.dataset is not None else "negative"
    if method in PAIRED and not found.is_paired:
        raise bad_request(f"{method.value} compares pairs, and these texts are none", param=param, code="not_paired")
    if method in (Method.PCA_CENTRED, Method.CCS) and len(found.positive) < 2:
        raise bad_request(f"{method.value} needs at least two pairs", param=param, code="not_enough_texts")
    shortest = min(map(len, found.texts))
    if shortest < at.tokens_min:
        message = f"a text has {shortest} tokens, this position needs {at.tokens_min}"
        raise bad_request(message, param=place_param, code="no_such_token")
    rows = sum(len(ids) if method is Method.ACTADD else at.rows(len(ids)) for ids in found.texts)
    if rows * len(layers) * loaded.config.d_model > ACTIVATION_VALUES_MAX:
        message = f"{rows} activations at {len(layers)} layers are more than this server holds; ask for fewer layers"
        raise bad_request(message, param="layers", code="too_many_activations")


def _padded_pair(found: Samples, body: ExtractRequest, loaded: LoadedModel) -> Samples:
    """Both texts at the length of the longer one, with spaces behind, as ActAdd does it."""
    if not len(found.positive) == len(found.negative) == 1:
        raise bad_request("actadd takes one positive and one negative text", param="positive")
    if body.token is not None and body.token != "last":  # noqa: S105
        raise bad_request("actadd takes every token, each at its place", param="token")
    longest = max(map(len, found.texts))
    space = loaded.tokenizer.encode(" ", add_special_tokens=False)
    if len(space) != 1 and {len(ids) for ids in found.texts} != {longest}:
        raise bad_request("this vocabulary has no token for a space: give texts of as many tokens", param="negative")

    def padded(ids: TokenIds) -> TokenIds:
        return (*ids, *(space * (longest - len(ids))))

    return Samples(positive=(padded(found.positive[0]),), negative=(padded(found.negative[0]),), is_paired=True)


def _checked_params(
    given: MethodParams | None, method: Method, found: Samples, *, judged: Method | None = None
) -> dict[str, Any]:
    """What was given, if `method` (or the rule it is judged by) knows it."""
    params = {} if given is None else without_none(given)
    known = PARAMETERS.get(method, frozenset()) | (PARAMETERS[judged] if judged is not None else frozenset())
    for name in params:
        if name not in known:
            message = f"{name} is no parameter of {method.value}; it knows {sorted(known) or 'none'}"
            raise bad_request(message, param=f"params.{name}", code="unknown_field")
    if "labels" in params and len(params["labels"]) != len(found.positive):
        message = f"{len(params['labels'])} labels for {len(found.positive)} pairs"
        raise bad_request(message, param="params.labels")
    return params


def _params(params: dict[str, Any]) -> Params:
    chosen = {name: value for name, value in params.items() if name in _METHOD_PARAMS}
    if "labels" in chosen:
        chosen["labels"] = tuple(chosen["labels"])
    return Params(**chosen)


def _first_ids(words: Sequence[str], loaded: LoadedModel) -> tuple[int, ...]:
    encoded = [loaded.tokenizer.encode(word, add_special_tokens=False) for word in words]
    if not all(encoded):
        raise bad_request("a word has no tokens", param="params.first_words")
    return tuple(dict.fromkeys(ids[0] for ids in encoded))


def _provenance(
    body: Contrast, method: Method, texts: ContrastTexts, found: Samples, loaded: LoadedModel
) -> dict[str, Any]:
    return {
        "method": method.value,
        "layer_convention": "block_output",
        "tokenisation": "chat_template" if body.chat else "plain_with_model_default_special_tokens",
        "starts_with_bos": starts_with_bos(found.texts, loaded),
        "chat_template_digest": template_digest(loaded) if body.chat else None,
        "dataset": texts.dataset,
        "dataset_digest": texts.digest_sha256,
        "model_digest": loaded.vectors_digest,
        "is_paired": found.is_paired,
        "pairs": len(found.positive) if found.is_paired else None,
        "texts": {"positive": len(found.positive), "negative": len(found.negative)},
    }


def _token_name(token: Token | None) -> str | int:
    return "last" if token is None else token
