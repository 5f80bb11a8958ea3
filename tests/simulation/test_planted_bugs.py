"""A harness that finds nothing proves nothing: each of these bugs, planted in the real code, is found within some schedules."""

import pytest

import gateway.recovery
from gateway.leases import Leases
from gateway.ledger.fenced import FencedLedger
from gateway.ledger.memory import MemoryLedger
from gateway.ports import LedgerUnavailable
from gateway.recovery import Estates
from gateway.tick import Tick
from gateway.vigil import Vigil
from policy.budget import Purse
from policy.limits import HOLDER_S
from policy.rules import Window
from simulation.world import simulate

SCHEDULES = 600


def found(first=0):
    """What the first schedule that violates something says."""
    for seed in range(first, first + SCHEDULES):
        violation = simulate(seed).violation
        if violation is not None:
            return violation
    return None


def recovery_forgets_what_was_released(patch):
    patch.setattr(Estates, "_released", lambda self, leaf: None)


def recovery_forgets_the_silence_of_open_answers(patch):
    patch.setattr(gateway.recovery, "SILENCE_BITS", 0)


def recovery_gives_back_what_was_forfeited(patch):
    patch.setattr(Estates, "_forfeited", lambda self, leaf: self._begin(leaf.successor, leaf.at_ms))


def recovery_gives_nothing_back(patch):
    patch.setattr(gateway.recovery.Estate, "returns", lambda self: {})


def recovery_believes_an_old_disk(patch):
    async def never(estate, *, ledger, clock):
        return False

    patch.setattr(gateway.recovery, "_is_stale", never)


def leases_are_used_before_the_store_has_answered(patch):
    grant = Leases._grant

    async def eager(self, wanted):
        try:
            return await grant(self, wanted)
        except LedgerUnavailable:
            for name, want in wanted.items():
                self.purse.credit(name, want.most_bits)
            return None

    patch.setattr(Leases, "_grant", eager)


def what_is_reserved_goes_back_as_well(patch):
    def give_back(self, stock, bits):
        bits += self.purse.reserved_bits(stock.account.id)
        for lease, granted_bits in reversed(list(stock.leases.items())):
            part_bits = min(granted_bits, bits)
            self._close_lease(stock, lease, part_bits)
            bits -= part_bits

    def debit(self, name, bits):
        self._balance_bits[name] = max(self.balance_bits(name) - bits, 0)

    patch.setattr(Leases, "_give_back", give_back)
    patch.setattr(Purse, "debit", debit)


def a_janitor_refunds_leases_of_holders_that_are_silent(patch):
    beat = MemoryLedger.beat
    refunded = set()

    async def janitor(self, holder):
        for name, lease in self._leases.items():
            silent = self._clock.wall_s() - self._holders.get(lease.holder, 1e12) > HOLDER_S
            if silent and (id(self), name) not in refunded:
                refunded.add((id(self), name))
                for account, bits in lease.bits.items():
                    self._accounts[account].debit(-bits)
        return await beat(self, holder)

    patch.setattr(MemoryLedger, "beat", janitor)


def a_grant_that_two_asked_for_is_credited_twice(patch):
    patch.setattr(Leases, "_awaits", lambda self, lease: True)


def a_copied_process_gives_back_before_it_looks(patch):
    patch.setattr(Leases, "_look_closely", lambda self: None)


def nobody_notices_that_clocks_jumped(patch):
    patch.setattr(Vigil, "look", lambda self: None)


def a_close_is_told_before_it_is_on_the_record(patch):
    async def flush(self):
        pass

    patch.setattr(Tick, "flush", flush)


def what_is_under_way_at_the_close_is_stranded(patch):
    async def finish(self):
        pass

    patch.setattr(Leases, "_finish_granting", finish)


def sliding_windows_forget_the_step_that_is_in_them_in_part(patch):
    patch.setattr(Window, "steps", property(lambda self: -(-self.duration_s // self.step_s)))


def sliding_windows_forget_the_spare_step(patch):
    patch.setattr(Window, "steps", property(lambda self: -(-self.duration_s // self.step_s) + 1))


def the_store_grants_beyond_its_limit(patch):
    remaining_bits = MemoryLedger._remaining_bits
    patch.setattr(MemoryLedger, "_remaining_bits", lambda self, name: remaining_bits(self, name) + 1)


def nobody_minds_that_the_store_forgot(patch):
    patch.setattr(FencedLedger, "_owe", lambda self, shown, *, seen: None)


def a_grant_of_a_store_that_forgot_is_used(patch):
    async def believe(self, asked, answered):
        pass

    patch.setattr(FencedLedger, "_believe", believe)


BUGS = [
    recovery_forgets_what_was_released,
    recovery_forgets_the_silence_of_open_answers,
    recovery_gives_back_what_was_forfeited,
    recovery_gives_nothing_back,
    recovery_believes_an_old_disk,
    leases_are_used_before_the_store_has_answered,
    what_is_reserved_goes_back_as_well,
    a_janitor_refunds_leases_of_holders_that_are_silent,
    a_grant_that_two_asked_for_is_credited_twice,
    a_copied_process_gives_back_before_it_looks,
    nobody_notices_that_clocks_jumped,
    a_close_is_told_before_it_is_on_the_record,
    what_is_under_way_at_the_close_is_stranded,
    sliding_windows_forget_the_step_that_is_in_them_in_part,
    sliding_windows_forget_the_spare_step,
    the_store_grants_beyond_its_limit,
    nobody_minds_that_the_store_forgot,
    a_grant_of_a_store_that_forgot_is_used,
]


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_the_simulation_finds(plant, monkeypatch):
    plant(monkeypatch)
    assert found() is not None
