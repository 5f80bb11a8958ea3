"""What processes hold, each for itself and all together."""

from gateway.holdings import Held, Holdings, in_purse, together
from policy.budget import Purse


def test_a_purse_shows_what_is_free_and_what_is_reserved(fakes):
    purse = Purse()
    account = fakes.account("a")
    purse.credit("a", 100)
    purse.credit("b", 5)
    purse.reserve((account,), 30)
    holdings = in_purse(purse, answers=1)
    assert holdings.answers == 1
    assert holdings.accounts == {"a": Held(leased_bits=70, reserved_bits=30), "b": Held(leased_bits=5)}
    assert holdings.of("unknown") == Held()


def test_what_several_hold_is_added_up():
    one = Holdings(answers=1, accounts={"a": Held(leased_bits=1, reserved_bits=2), "b": Held(leased_bits=3)})
    other = Holdings(answers=2, accounts={"a": Held(leased_bits=10, reserved_bits=20)})
    assert together([one, other]) == Holdings(
        answers=3, accounts={"a": Held(leased_bits=11, reserved_bits=22), "b": Held(leased_bits=3)}
    )
    assert together([]) == Holdings()
