"""Paced play-out: one quantum a tick, begun with a few in hand. What a steady stream costs is in its stalls."""

from policy.canonical import Answer, Finish, TextDelta
from policy.limits import PACED_HEAD_QUANTA
from policy.release import Outcome
from policy.ticks import TickSymbols

QUANTUM = 16


def paced() -> Answer:
    return Answer(quantum_bytes=QUANTUM, answer_bytes_max=1 << 20, tools_declared=frozenset(), paced=True)


def test_a_paced_answer_begins_with_a_few_quanta_in_hand() -> None:
    answer = paced()
    answer.add(TextDelta("x" * (PACED_HEAD_QUANTA * QUANTUM - 1)))
    assert not answer.ready
    answer.add(TextDelta("x"))
    assert answer.ready


def test_a_paced_answer_plays_out_one_quantum_a_tick_however_much_is_there() -> None:
    answer = paced()
    answer.add(TextDelta("x" * 1000))
    assert [len(answer.take(idle_ticks=0, quanta=answer.quanta_now).text) for _ in range(5)] == [QUANTUM] * 5


def test_once_begun_a_single_quantum_is_enough_to_go_on() -> None:
    answer = paced()
    answer.add(TextDelta("x" * PACED_HEAD_QUANTA * QUANTUM))
    for _ in range(PACED_HEAD_QUANTA):
        answer.take(idle_ticks=0, quanta=answer.quanta_now)
    answer.add(TextDelta("y" * QUANTUM))
    assert answer.ready


def test_a_short_answer_does_not_wait_for_what_will_never_come() -> None:
    answer = paced()
    answer.add(TextDelta("short"))
    answer.add(Finish(Outcome.STOP))
    assert answer.ready
    assert answer.last_piece


def steady(pieces: int, *, stalls: int) -> int:
    symbols = TickSymbols()
    for piece in range(pieces):
        symbols.piece(idle_ticks=1 if piece < stalls else 0, quanta=1)
    symbols.end(idle_ticks=0)
    return symbols.adaptive_bits()


def test_only_stalls_cost_a_paced_stream_anything_to_speak_of() -> None:
    """Described adaptively, a thousand ticks on time are a few dozen bits in all; each stall is several more."""
    on_time = steady(1000, stalls=0)
    assert on_time < 64
    assert steady(1000, stalls=10) - on_time > 5 * 10
