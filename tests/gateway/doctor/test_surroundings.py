"""What can be read about where a process is."""

import socket

from gateway.doctor.surroundings import (
    DefaultRoute,
    abstract_sockets,
    default_routes4,
    default_routes6,
    name_servers,
    own_addresses,
    proxies,
)

ROUTES4 = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
wg0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0
bad0\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0
"""
ROUTES6 = """\
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000001 00000000 00000003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0
fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
"""
SOCKETS = """\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 100 @left-behind
0000000000000000: 00000003 00000000 00000000 0001 03 101 @left-behind
0000000000000000: 00000002 00000000 00000000 0002 01 102 @datagrams
0000000000000000: 00000002 00000000 00010000 0001 01 103 /run/named.sock
0000000000000000: 00000003 00000000 00000000 0001 03 104
0000000000000000: 00000002 00000000 00010000 0005 01 105 @with space@and nul
"""


def test_default_routes_are_read_and_routes_that_reject_are_none():
    assert list(default_routes4(ROUTES4)) == [
        DefaultRoute(device="eth0", next_hop="192.0.2.1"),
        DefaultRoute(device="wg0", next_hop=None),
    ]
    assert list(default_routes6(ROUTES6)) == [
        DefaultRoute(device="eth0", next_hop="fd00::1"),
        DefaultRoute(device="eth0", next_hop="fe80::1%eth0"),
    ]
    assert list(default_routes4("")) == list(default_routes6("")) == []


def test_name_servers_are_those_that_are_addresses():
    text = "# nameserver 9.9.9.9\nsearch x\nnameserver 10.0.0.53\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver\n"
    assert name_servers(text) == ["10.0.0.53", "fe80::1%eth0"]


def test_proxies_of_the_environment_are_found_without_their_passwords():
    environment = {
        "HTTPS_PROXY": "http://user:secret@proxy.internal:3128",
        "all_proxy": "socks5://[fd00::9]",
        "http_proxy": "proxy.internal",
        "no_proxy": "localhost",
        "FTP_PROXY": "",
        "ftp_proxy": "http://host:port",
        "PROXY": "http://other",
    }
    assert proxies(environment) == [
        ("HTTPS_PROXY", "proxy.internal", 3128),
        ("all_proxy", "fd00::9", 1080),
        ("http_proxy", "proxy.internal", 80),
    ]


def test_abstract_sockets_are_those_that_somebody_listens_on():
    assert abstract_sockets(SOCKETS) == [
        ("datagrams", socket.SOCK_DGRAM),
        ("left-behind", socket.SOCK_STREAM),
        ("with space@and nul", socket.SOCK_SEQPACKET),
    ]


def test_this_hosts_own_addresses_are_none_that_only_it_can_reach():
    assert not any(address.startswith(("127.", "fe80")) or address == "::1" for address in own_addresses())
