"""Codelengths in whole bits: what each thing a backend can choose costs. Every code here satisfies Kraft's inequality.

A charge must be at least -log2 of the probability that one fixed, consistent measure gives the released view
(docs/theory.md). Prefix codes are such measures, so their lengths add up and need no decoder.
"""

from __future__ import annotations

from policy.limits import ANSWER_BYTES_MAX
from policy.release import Ending, Outcome, Release, Usage, Vectors

BITS_PER_BYTE = 8

# A code over how an answer may end: 1/2 + 1/4 + 1/16 + 1/16 + 6/64 <= 1. Faults are rare, so they may be dear.
OUTCOME_BITS = {
    Outcome.STOP: 1,
    Outcome.LENGTH: 2,
    Outcome.TOOL_CALLS: 4,
    Outcome.BUDGET: 4,
    Outcome.UPSTREAM_ERROR: 6,
    Outcome.TIMEOUT: 6,
    Outcome.REJECTED: 6,
    Outcome.NOT_FOUND: 6,
    Outcome.CONFLICT: 6,
    Outcome.LICENCE: 6,
    Outcome.UNWITNESSED: 6,
}


def elias_delta_bits(number: int) -> int:
    """Length of the Elias delta code of `number` >= 1 (Elias 1975): floor(log2 n) + 2 floor(log2(floor(log2 n)+1)) + 1."""
    if number < 1:
        raise ValueError(f"Elias delta codes start at 1, not {number}")
    magnitude = number.bit_length() - 1
    return magnitude + 2 * ((magnitude + 1).bit_length() - 1) + 1


def choice_bits(alternatives: int) -> int:
    """One of `alternatives` equally likely values, in whole bits: ceil(log2 n)."""
    return (alternatives - 1).bit_length()


def slot_bits(idle_ticks: int) -> int:
    """Silence before an event is an event too: `idle_ticks` ticks passed with nothing released."""
    return elias_delta_bits(idle_ticks + 1)


def piece_bits(*, idle_ticks: int, quanta: int, text_bytes: int) -> int:
    """Some whole quanta of text at one tick: silence, "not the end" (1 bit), how many quanta, the bytes raw.

    A job's progress has quanta of no bytes: so many steps further.
    """
    return slot_bits(idle_ticks) + 1 + elias_delta_bits(quanta) + BITS_PER_BYTE * text_bytes


def ending_bits(*, idle_ticks: int, text_bytes: int, ending: Ending, tools_declared: int) -> int:
    """The last event of an answer: silence, "the end" (1 bit), the remaining text raw, and everything that goes with it."""
    bits = slot_bits(idle_ticks) + 1 + elias_delta_bits(text_bytes + 1) + BITS_PER_BYTE * text_bytes
    bits += OUTCOME_BITS[ending.outcome]
    bits += 1  # whether tool calls follow
    if ending.tool_calls:
        bits += elias_delta_bits(len(ending.tool_calls))
        for call in ending.tool_calls:
            size_bytes = len(call.arguments.encode())
            bits += choice_bits(tools_declared) + elias_delta_bits(size_bytes + 1) + BITS_PER_BYTE * size_bytes
    bits += usage_bits(ending.usage) + numbers_bits(ending.numbers) + vectors_bits(ending.vectors)
    return bits + len(ending.flags)  # how many there are follows from the request and from there being numbers


def parting_bits(*, idle_ticks: int) -> int:
    """Silence, and then nothing any more: the client left first, or the gateway had to abort.

    The masses of all events after the same silence fit into the half that an ending would have had.
    """
    return slot_bits(idle_ticks) + 1


def usage_bits(usage: Usage | None) -> int:
    """Token counts come from the backend, so they are priced: one bit for their presence, Elias delta each."""
    if usage is None:
        return 1
    return 1 + elias_delta_bits(usage.prompt_tokens + 1) + elias_delta_bits(usage.completion_tokens + 1)


def numbers_bits(numbers: tuple[int, ...] | None) -> int:
    """A row of non-negative fixed-point statistics: how many (none: one bit), then each."""
    row = numbers or ()
    return elias_delta_bits(len(row) + 1) + sum(elias_delta_bits(number + 1) for number in row)


def vectors_bits(vectors: Vectors | None) -> int:
    """Embeddings, raw. That there are any follows from the outcome, how many from the request, of what kind from policy."""
    if vectors is None:
        return 0
    dimensions = len(vectors.rows[0])
    length_bits = elias_delta_bits(dimensions) if vectors.dimensions_coded else 0
    return length_bits + vectors.bits * dimensions * len(vectors.rows)


def switch_bits(release: Release) -> int:
    """Where reasoning turns into text: while it has not, one bit a release says whether it does, then after which byte."""
    if release.reasoning is None:
        return 0
    return 1 + (elias_delta_bits(len(release.reasoning.encode()) + 1) if release.text else 0)


SWITCH_BITS_MAX = 1 + elias_delta_bits(ANSWER_BYTES_MAX + 1)


def release_bits(release: Release, *, tools_declared: int) -> int:
    """The raw charge of one release at one tick, in whole bits."""
    text_bytes = len(release.spoken.encode())
    if release.ending is not None:
        bits = ending_bits(
            idle_ticks=release.idle_ticks, text_bytes=text_bytes, ending=release.ending, tools_declared=tools_declared
        )
    else:
        bits = piece_bits(idle_ticks=release.idle_ticks, quanta=release.quanta, text_bytes=text_bytes)
    return bits + switch_bits(release)
