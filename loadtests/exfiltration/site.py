"""Where the gateway answers in the backend's place: model lists, health, metrics, routes it does not know."""

from loadtests.exfiltration import honest
from loadtests.exfiltration.channel import Channel, Question, Residual, by_symbol
from loadtests.exfiltration.headers import WORD_BITS, word
from loadtests.exfiltration.hiding import from_hexadecimal
from loadtests.exfiltration.response import Response


def _found(response: Response) -> int | None:
    return from_hexadecimal(response.body.partition(b"hidden-")[2][:8])


def _channel(name: str, what: str, path: str) -> Channel:
    steal = by_symbol(
        bits=WORD_BITS,
        reply=lambda symbol: honest.whole({"object": "list", "data": [{"id": f"hidden-{word(symbol).decode()}"}]}),
        decode=_found,
        question=Question(method="GET", path=path),
    )
    return Channel(name=name, what=what, residual=Residual.NOTHING, steal=steal)


CHANNELS = (
    _channel("model-list", "a name in the backend's model list", "/v1/models"),
    _channel("health-body", "the body of the backend's health route", "/health"),
    _channel("metrics-body", "the backend's metrics", "/metrics"),
    _channel("vendor-routes", "a route that only engines have", "/get_weights_by_name?name=lm_head"),
)
