"""The status page as text: nothing in it becomes markup, nothing of it comes from elsewhere, and it says what is wrong."""

import base64
import dataclasses
import hashlib
import math
import re
from html.parser import HTMLParser

import pytest

from gateway.edge import status_page
from gateway.edge.drawing import bar, curve, top
from gateway.edge.markup import Html, document, tag
from gateway.history import RefusalsSeen
from gateway.overview import BackendView, BudgetView, LeaseView, LicenceView, LogView, Overview, TheftView
from gateway.status import BudgetStanding
from policy.budget import Account
from policy.rules import Window

NOW_S = 1_800_000_000.0
HOSTILE = "<script>alert('x')</script><img src=//evil onerror=\"x\"> & \" '"


def budget(share=0.5, *, name="acme", frozen=False, curve=()):
    account = Account(
        id="a",
        owner="tenant",
        name=name,
        model="m",
        window=Window(name="1d", duration_s=86_400),
        limit_bits=80_000,
        expires_s=int(NOW_S) + 3_720,
    )
    standing = BudgetStanding(
        account=account, used_bits=int(80_000 * share), reserved_bits=80, leased_bits=800, frozen=frozen
    )
    return BudgetView(standing=standing, curve=curve)


def view(**changes):
    usual = Overview(
        now_s=NOW_S,
        version="1.2.3",
        policy="ab" * 32,
        unready=None,
        ledger_fault=None,
        answers=1,
        workers=0,
        backlog=(),
        budgets=(budget(),),
        thefts=(TheftView(model="m", assumption="4-bit", is_own=True, theft_bits=8_000_000, days=math.inf),),
        refusals=(),
        last_refusals=(),
        backends=(BackendView(model="m", address="unix:/run/b.sock", open=0, answers=12345, errors=()),),
        leases=LeaseView(open=2, until_s=NOW_S + 290, errors=0),
        log=LogView(
            records=7,
            root="cd" * 32,
            signed_s=NOW_S - 1,
            witnessed_s=None,
            is_to_be_witnessed=False,
            disk_free_bytes=10**9,
        ),
        licence=LicenceView(is_asked_for=False, is_in_force=True, expires_s=None),
    )
    return dataclasses.replace(usual, **changes)


def page(**changes):
    return status_page.page(view(**changes), refreshes=False)


def words(text):
    """What a reader sees: text without markup, spaces run together."""
    body = text.split("</style>", 1)[1]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.attributes = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_and_runs_nothing():
    elements = Elements(page())
    assert not {"script", "iframe", "img", "object", "form", "video"} & set(elements.found)
    assert not [name for name, _ in elements.attributes if name.startswith("on") or name in ("style", "src")]
    assert {value for name, value in elements.attributes if name == "href"} == {"data:,", "/?refresh=10"}


def test_the_policy_of_the_page_permits_its_style_sheet_and_nothing_else():
    policy = status_page.HEADERS["Content-Security-Policy"]
    css = page().split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy
    assert "script-src" not in policy


@pytest.mark.parametrize(
    "changes",
    [
        {"unready": HOSTILE},
        {"ledger_fault": HOSTILE},
        {"budgets": (budget(name=HOSTILE, curve=[(0.0, 0.1), (10.0, 0.2)]),)},
        {"thefts": (TheftView(model=HOSTILE, assumption=HOSTILE, is_own=False, theft_bits=1, days=1.0),)},
        {"backends": (BackendView(model=HOSTILE, address=HOSTILE, open=0, answers=0, errors=((HOSTILE, 1),)),)},
        {"refusals": ((HOSTILE, 1),), "last_refusals": [RefusalsSeen(at_s=NOW_S, reason=HOSTILE, count=1)]},
        {"backlog": ((HOSTILE, 1),)},
    ],
    ids="-".join,
)
def test_nothing_that_is_shown_becomes_markup(changes):
    text = page(**changes)
    assert Elements(text).found.count("script") == 0
    assert "<img" not in text
    assert "&lt;script&gt;" in text


def test_attributes_are_escaped_too():
    assert tag("a", "x", href='" onclick="y').markup == '<a href="&quot; onclick=&quot;y">x</a>'
    assert (
        tag("p", Html("<b>1</b>"), 2, None_="x", hidden=True, title=None).markup == '<p None="x" hidden><b>1</b>2</p>'
    )
    assert document("<").startswith('<!doctype html>\n<html lang="en">&lt;')


def test_it_says_why_it_is_not_ready():
    assert "not ready: the ledger does not answer" in words(page(unready="the ledger does not answer"))
    assert " ready " in words(page())


def test_a_budget_has_its_share_its_sizes_and_its_end():
    text = words(page())
    assert "tenant acme, m" in text
    assert "50.0% 5 kB 10 kB 110 B in 1 h 2 min" in text


def test_a_frozen_account_and_a_ledger_that_is_away_are_said_in_words():
    assert "tenant acme, m FROZEN" in words(page(budgets=(budget(frozen=True),)))
    assert "The ledger does not answer: it is away" in words(page(ledger_fault="it is away", budgets=()))


def test_days_to_theft_are_never_or_a_number():
    text = words(page())
    assert "m 4-bit, as the policy assumes 1 MB never" in text
    theft = TheftView(model="m", assumption="2-bit", is_own=False, theft_bits=8, days=1234.56)
    assert "m 2-bit 1 B 1,235" in words(page(thefts=(theft,)))


def test_refusals_say_when_they_were_last_seen_and_how_many_there_were():
    seen = [
        RefusalsSeen(at_s=NOW_S - 90, reason="over_budget", count=2),
        RefusalsSeen(at_s=NOW_S - 900, reason="over_budget", count=2),
    ]
    text = words(page(refusals=(("unknown_key", 9), ("over_budget", 4000)), last_refusals=seen))
    assert "over_budget 1 min 30 s ago 4,000 unknown_key before anybody looked 9" in text
    assert "None since this gateway began." in words(page())


def test_the_licence_counts_down_or_says_that_nothing_leaves():
    licence = LicenceView(is_asked_for=True, is_in_force=True, expires_s=NOW_S + 7_200)
    assert "In force yes Ends in 2 h, 2027-01-15 10:00:00 UTC" in words(page(licence=licence))
    licence = LicenceView(is_asked_for=True, is_in_force=False, expires_s=NOW_S - 5)
    assert "In force no: nothing leaves Ended 5 s ago" in words(page(licence=licence))
    assert "The policy asks for none." in words(page())


def test_the_log_and_the_leases_are_told():
    log = LogView(
        records=1_234,
        root="cd" * 32,
        signed_s=NOW_S - 1,
        witnessed_s=None,
        is_to_be_witnessed=True,
        disk_free_bytes=10**9,
    )
    text = words(page(log=log, backlog=(("zstd", 3),)))
    assert f"Records 1,234 Head {'cd' * 32} Signed 1 s ago Witnessed never Disk free 1 GB" in text
    assert "Open 2 Without the ledger 4 min 50 s Ledger errors 0 To be settled 3 for zstd" in text


def test_a_page_reloads_itself_only_for_who_asked_for_it():
    assert "refresh every 10 s" in words(page())
    assert "stop refreshing" in words(status_page.page(view(), refreshes=True))
    assert "http-equiv" not in page()


def test_a_curve_has_words_for_who_does_not_see_it_and_its_gaps_are_not_bridged():
    points = [(0.0, 0.1), (10.0, 0.2), (20.0, None), (30.0, 0.4)]
    drawn = curve(points, label="acme").markup
    assert "<title>acme</title>" in drawn
    assert drawn.count('class="line') == 2
    assert "acme, m, 1d: 10.0% at first, 40.0% now, 40.0% at most" in page(budgets=(budget(curve=points),))


@pytest.mark.parametrize(
    ("share", "edge"), [(0.0, 0.001), (0.0004, 0.001), (0.02, 0.05), (0.26, 0.5), (0.9, 1.0), (1.3, 1.0)]
)
def test_a_curve_uses_its_height(share, edge):
    assert top([(0.0, 0.0), (1.0, share), (2.0, None)]) == edge


def test_a_bar_stays_in_its_bed():
    assert 'class="alarm" width="100.0"' in bar(3.0).markup
    assert 'class="warning" width="80.0"' in bar(0.8).markup
    assert 'class="calm" width="0' in bar(-1.0).markup
