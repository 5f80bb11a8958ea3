"""What the status page remembers is bounded, and keeps the shape of what it forgets."""

import itertools

from gateway.history import DISTANCE_S_MAX, History, RefusalsSeen
from policy.limits import HISTORY_CURVES_MAX, HISTORY_DISTANCE_S, HISTORY_POINTS_MAX, HISTORY_REFUSALS_MAX

DAY_S = 86_400


def seen(history, *, until_s, share=lambda at_s: at_s):
    at_s = 0.0
    while at_s < until_s:
        history.see(at_s, {"b": share(at_s)})
        at_s += HISTORY_DISTANCE_S
    return history


def test_an_hour_is_remembered_point_by_point():
    curve = seen(History(), until_s=HISTORY_POINTS_MAX * HISTORY_DISTANCE_S).curve("b")
    assert [at_s for at_s, _ in curve] == [n * HISTORY_DISTANCE_S for n in range(HISTORY_POINTS_MAX)]


def test_a_longer_time_is_remembered_from_its_beginning_with_half_the_points():
    history = seen(History(), until_s=2 * HISTORY_POINTS_MAX * HISTORY_DISTANCE_S)
    curve = history.curve("b")
    assert history.distance_s == 2 * HISTORY_DISTANCE_S
    assert curve[0] == (0.0, 0.0)
    assert all(share == at_s for at_s, share in curve)
    assert {after - before for (before, _), (after, _) in itertools.pairwise(curve)} == {20.0}


def test_nothing_grows_without_end_and_a_day_is_always_there():
    history = seen(History(), until_s=4 * DAY_S)
    curve = history.curve("b")
    assert HISTORY_POINTS_MAX // 2 < len(curve) <= HISTORY_POINTS_MAX
    assert history.distance_s == DISTANCE_S_MAX
    assert curve[-1][0] - curve[0][0] > DAY_S
    assert curve[-1][0] > 4 * DAY_S - 2 * DISTANCE_S_MAX
    history.see(5 * DAY_S, {str(number): 0.0 for number in range(HISTORY_CURVES_MAX + 1)})
    assert history.curve(str(HISTORY_CURVES_MAX))[-1][1] is None


def test_who_looks_often_adds_no_points():
    history = History()
    for tenth in range(90):
        history.see(tenth / 10, {"b": 0.5})
    assert len(history.curve("b")) == 1


def test_a_clock_that_is_set_back_does_not_end_the_curve():
    history = History()
    history.see(1000.0, {"b": 0.1})
    history.see(500.0, {"b": 0.2})
    assert history.curve("b") == [(1000.0, 0.1), (500.0, 0.2)]


def test_a_budget_that_came_later_has_no_share_before():
    history = History()
    history.see(0.0, {"old": 0.5})
    history.see(10.0, {"new": 0.25})
    assert history.curve("new") == [(0.0, None), (10.0, 0.25)]
    assert history.curve("old") == [(0.0, 0.5), (10.0, None)]


def test_refusals_are_seen_when_their_counters_move_and_the_last_come_first():
    history = History()
    history.refusals(0.0, {"over_budget": 7})  # from before anybody looked
    history.refusals(10.0, {"over_budget": 7, "unknown_key": 2})
    history.refusals(20.0, {"over_budget": 8, "unknown_key": 2})
    assert list(history.last_refusals) == [
        RefusalsSeen(at_s=20.0, reason="over_budget", count=1),
        RefusalsSeen(at_s=10.0, reason="unknown_key", count=2),
    ]


def test_a_flood_of_refusals_leaves_as_much_as_a_trickle():
    history = History()
    for number in range(10 * HISTORY_REFUSALS_MAX):
        history.refusals(float(number), {"over_budget": number * 1000})
    assert len(history.last_refusals) == HISTORY_REFUSALS_MAX
