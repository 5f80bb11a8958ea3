"""The table of mutants: what no test noticed is never counted as killed."""

import pytest

from tests.mutants import by_file, share, statuses, table

RESULTS = """\
    policy.budget.xǁHoldǁcharge__mutmut_1: killed
    policy.budget.xǁHoldǁcharge__mutmut_2: timeout
    policy.budget.x_period_of__mutmut_1: survived
    gateway.leases.xǁLeasesǁ_take__mutmut_1: no tests
"""


def test_mutants_are_counted_by_their_files():
    files = by_file(statuses(RESULTS))
    assert files["policy/budget.py"] == {"killed": 1, "timeout": 1, "survived": 1}
    assert [line.split() for line in table(files)][1:] == [
        ["policy/budget.py", "3", "1", "1", "1", "66.7%"],
        ["gateway/leases.py", "1", "0", "0", "1", "0.0%"],
    ]


@pytest.mark.parametrize("status", ["survived", "no tests", "suspicious", "segfault", "skipped", "not checked"])
def test_only_a_test_that_failed_or_never_ended_kills(status):
    files = by_file({"policy.budget.x_a__mutmut_1": status, "policy.budget.x_a__mutmut_2": "killed"})
    assert share(files["policy/budget.py"]) == 0.5
