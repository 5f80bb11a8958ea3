"""HTTP: texts in, bits out, in order. The routes of `python -m inference score`."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from concurrent.futures import Future
from typing import Annotated

from aiohttp import web
from msgspec import Meta

from inference import limits
from inference.chat import TemplateError
from inference.loading import LoadedModel
from inference.score.scorer import QueueFullError, Score, Scorer, StoppedError
from inference.score.segmentation import Segmenter, TokenPath
from inference.score.windows import prompt_tokens_max
from inference.server.body import read_body
from inference.server.errors import ApiError, bad_request, errors_as_json, json_response
from inference.server.schema import Message, Strict, decode, template_message

_log = logging.getLogger("inference.score")


class Item(Strict, frozen=True, kw_only=True):
    """A text, and the request it answers: either a chat or a prompt as it stands, which may be empty."""

    text: str
    messages: Annotated[list[Message], Meta(min_length=1, max_length=limits.MESSAGES_MAX)] | None = None
    prompt: str | None = None


class ScoreRequest(Strict, frozen=True, kw_only=True):
    items: Annotated[list[Item], Meta(min_length=1, max_length=limits.SCORE_ITEMS_MAX)]


@dataclasses.dataclass(kw_only=True)
class ScoreService:
    """What the routes share. `document` is what `code` is the digest of."""

    loaded: LoadedModel
    scorer: Scorer
    code: str
    document: dict[str, object]
    is_draining: bool = False

    def __post_init__(self) -> None:
        config = self.loaded.config
        start_id = config.bos_token_id if config.bos_token_id is not None else min(self.loaded.end_ids, default=0)
        kept = prompt_tokens_max(config.context_tokens)
        self.segmenter = Segmenter(self.loaded.tokenizer, start_id=start_id, prompt_tokens_max=kept)

    @property
    def worker(self) -> Scorer:
        return self.scorer

    @property
    def model_id(self) -> str:
        return self.loaded.id

    def refuse_if_draining(self) -> None:
        if self.is_draining:
            raise ApiError(503, "the server is shutting down", code="stopping")


SERVICE: web.AppKey[ScoreService] = web.AppKey("score_service", ScoreService)


def make_app(service: ScoreService) -> web.Application:
    app = web.Application(middlewares=[errors_as_json], client_max_size=limits.SCORE_BODY_BYTES_MAX)
    app[SERVICE] = service
    app.add_routes(
        [
            web.get("/livez", _livez, allow_head=False),
            web.get("/readyz", _readyz, allow_head=False),
            web.get("/code", _code, allow_head=False),
            web.post("/score", _score),
        ]
    )
    return app


async def _livez(_: web.Request) -> web.Response:
    return json_response({"status": "ok"})


async def _readyz(request: web.Request) -> web.Response:
    request.app[SERVICE].refuse_if_draining()
    return json_response({"status": "ok"})


async def _code(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    return json_response({"code": service.code, "model_id": service.model_id, "measure": service.document})


async def _score(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    service.refuse_if_draining()
    began_s = time.monotonic()
    body = decode(await read_body(request), ScoreRequest)
    for i, item in enumerate(body.items):
        if (item.messages is None) == (item.prompt is None):
            raise bad_request("an item has either messages or a prompt", param=f"items[{i}]")
    # Templates and tokenizers take milliseconds for long texts: not in the event loop.
    paths = await asyncio.to_thread(lambda: [_path(item, service) for item in body.items])
    results = await _results(paths, service.scorer)
    taken_s = time.monotonic() - began_s
    failed = sum(not isinstance(result, Score) for result in results)
    _log.info("scored", extra={"items": len(results), "failed": failed, "seconds": round(taken_s, 3)})
    return json_response({"code": service.code, "items": [_document(result) for result in results]})


def _path(item: Item, service: ScoreService) -> TokenPath | str:
    """What is to be scored, or why this text has no score and stays as it was charged."""
    if len(item.text.encode()) > limits.SCORE_TEXT_BYTES_MAX:
        return f"the text is longer than {limits.SCORE_TEXT_BYTES_MAX} bytes"
    if item.messages is None:
        assert item.prompt is not None
        return service.segmenter.path(item.prompt, item.text, add_special_tokens=True)
    try:
        shown = service.loaded.template.render([template_message(message) for message in item.messages])
    except TemplateError as error:
        return str(error)
    return service.segmenter.path(shown, item.text, add_special_tokens=False)


async def _results(paths: list[TokenPath | str], scorer: Scorer) -> list[Score | str]:
    try:
        submitted = iter(scorer.submit([path for path in paths if isinstance(path, TokenPath)]))
    except QueueFullError as error:
        raise ApiError(503, "too many texts are waiting; try again later", code="queue_full") from error
    except StoppedError as error:
        raise ApiError(503, "the server is shutting down", code="stopping") from error
    # Should the client hang up, gather cancels the futures, and what was not run yet never is.
    return await asyncio.gather(*(_result(path if isinstance(path, str) else next(submitted)) for path in paths))


async def _result(found: str | Future[Score]) -> Score | str:
    if isinstance(found, str):
        return found
    try:
        return await asyncio.wrap_future(found)
    except StoppedError:
        return "the server is shutting down"
    except Exception:  # noqa: BLE001 - whatever broke is in the scorer's log; the other texts have their bits
        return "scoring failed; the server's log has the reason"


def _document(result: Score | str) -> dict[str, object]:
    return {"error": result} if isinstance(result, str) else {"bits": result.bits, "tokens": result.symbols}
