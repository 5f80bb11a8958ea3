"""Text that nobody can tell from a model's own: secret bits range-coded into the model's distribution. Priced like any."""

import asyncio

from loadtests.exfiltration import honest
from loadtests.exfiltration.answer import text_of
from loadtests.exfiltration.backend import Ask, Wire
from loadtests.exfiltration.channel import STREAM, Channel, Loot, Residual, Scene, ask_all
from loadtests.exfiltration.information import bits_of, prefix_length
from loadtests.exfiltration.range_coder import hide, reveal
from loadtests.exfiltration.smollm import FluentModel, fluent_model
from loadtests.exfiltration.text import by_text
from loadtests.exfiltration.word_model import documents_model

WORDS_MAX = 2000
TOKENS_MAX = 200
FLUENT_BYTES = 16  # about 40 tokens of SmolLM2


def _hide_in_words(secret: bytes) -> str:
    model = documents_model()
    return model.text(hide(bits_of(secret), model, tokens_max=WORDS_MAX))


def _reveal_in_words(text: str) -> list[int]:
    model = documents_model()
    return reveal(model.tokens(text), model)


async def _steal_fluently(scene: Scene) -> Loot:
    """One answer that SmolLM2 itself might have given. Raises `smollm.ModelMissing`."""
    secret = bits_of(scene.rng.randbytes(FLUENT_BYTES))
    model: FluentModel = await asyncio.to_thread(fluent_model)
    tokens = await asyncio.to_thread(hide, secret, model, tokens_max=TOKENS_MAX)

    async def act(_: Ask, wire: Wire) -> None:
        await wire.send(honest.stream(honest.events(model.text(tokens))))

    scene.backend.act = act
    (answer,) = await ask_all(scene, STREAM, 1, at_once=1)
    said = text_of(answer)
    decoded = prefix_length(secret, await asyncio.to_thread(reveal, model.tokens(said), model))
    return Loot(sent_bits=len(secret), decoded_bits=decoded, responses=1, note=f"“{said[:60]}…”")


CHANNELS = (
    Channel(
        name="text-fluent-words",
        what="range-coded into a word model of the project's documents",
        residual=Residual.PRICED,
        steal=by_text(_hide_in_words, _reveal_in_words, secret_bytes=100, question=STREAM),
    ),
    Channel(
        name="text-fluent-smollm2",
        what="range-coded into SmolLM2's next-token distribution",
        residual=Residual.PRICED,
        steal=_steal_fluently,
        slow=True,
    ),
)
