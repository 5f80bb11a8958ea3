"""What an operator may write."""

import pytest

from gateway.doctor.targets import Allowed, BadTarget, Target, target


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("tcp:10.0.0.5:443", Target(kind="tcp", host="10.0.0.5", port=443)),
        ("udp:[fd00::5]:53", Target(kind="udp", host="fd00::5", port=53)),
        ("tcp:fd00::5:53", Target(kind="tcp", host="fd00::5", port=53)),
        ("dns:10.0.0.53", Target(kind="dns", host="10.0.0.53")),
        ("icmp:[fd00::5]", Target(kind="icmp", host="fd00::5")),
        ("unix:/run/x.sock", Target(kind="unix", host="/run/x.sock")),
    ],
)
def test_a_target_is_read(word, read):
    assert target(word) == read
    assert target(str(read)) == read


@pytest.mark.parametrize(
    "word",
    ["", "tcp", "tcp:10.0.0.5", "tcp:10.0.0.5:0", "tcp:10.0.0.5:65536", "tcp:host.internal:443", "icmp:", "unix:relative",
     "sctp:10.0.0.5:1", "tcp:10.0.0.5:٣", "dns:name"],
)  # fmt: skip
def test_what_is_no_target_is_refused(word):
    with pytest.raises(BadTarget):
        target(word)


def test_what_is_allowed_is_an_address_or_one_port_of_it():
    allowed = Allowed(words=frozenset({"10.0.0.1", "10.0.0.2:53", "[fd00::1]:53", "unix:/run/x.sock"}))
    assert allowed.covers("10.0.0.1", 22)
    assert allowed.covers("10.0.0.1")
    assert allowed.covers("10.0.0.2", 53)
    assert not allowed.covers("10.0.0.2", 54)
    assert not allowed.covers("10.0.0.2")
    assert allowed.covers("fd00::1", 53)
    assert allowed.sockets == frozenset({"/run/x.sock"})
