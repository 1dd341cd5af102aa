"""The arithmetic of limits: rates, who is forgotten and when, and what the log is told."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backchannel.limits import MINUTE, OTHERS, Bucket, Line, Offenders, Rates, network_of

STEPS = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 40)), max_size=60)

# ── buckets ───────────────────────────────────────────────────────────────────────────────────


def test_as_much_as_the_burst_may_come_at_once_and_then_as_much_as_leaks():
    bucket = Bucket(rate=10, burst=10)
    assert [bucket.take(1, 100.0) for _ in range(11)] == [True] * 10 + [False]
    assert not bucket.take(1, 100.05)
    assert bucket.take(1, 100.125)
    assert not bucket.take(1, 100.125)
    assert [bucket.take(1, 200.0) for _ in range(11)] == [True] * 10 + [False]


def test_what_is_refused_is_not_counted():
    bucket = Bucket(rate=1, burst=5)
    assert not bucket.take(6, 0.0)
    assert bucket.take(5, 0.0)


def test_it_says_when_there_is_room_and_then_there_is():
    bucket = Bucket(rate=0.5, burst=1)
    assert bucket.wait(1, 7.0) == 0
    assert bucket.take(1, 7.0)
    assert bucket.wait(1, 7.0) == 2
    assert bucket.wait(1, 8.5) == 0.5
    assert bucket.take(1, 9.0)


@given(STEPS, st.floats(0.1, 50), st.floats(1, 100))
def test_in_the_long_run_no_more_comes_than_the_rate_and_one_burst(steps, rate, burst):
    bucket, now, taken = Bucket(rate, burst), 1000.0, 0
    for pause, amount in steps:
        now += pause
        if bucket.take(amount, now):
            taken += amount
        assert taken <= burst + rate * (now - 1000.0) + 1e-6


@given(STEPS, st.floats(0.1, 50), st.floats(1, 100))
def test_who_keeps_to_the_rate_is_never_refused(steps, rate, burst):
    bucket, now = Bucket(rate, burst), 1000.0
    for _, wanted in steps:
        amount = min(wanted, burst)
        now += amount / rate + 1e-6
        assert bucket.take(amount, now)


@given(STEPS, st.floats(0.1, 50), st.floats(0, 30))
def test_excuses_add_nothing_in_the_long_run(steps, rate, stalled):
    """In the time that is excused nothing was taken: afterwards it may all come, and no more."""
    bucket, now, taken = Bucket(rate, 40), 1000.0, 0
    for number, (pause, amount) in enumerate(steps):
        now += pause
        if number % 3 == 2:
            now += stalled
            bucket.excuse(stalled, now)
        if bucket.take(amount, now):
            taken += amount
        assert taken <= 40 + rate * (now - 1000.0) + 1e-6


def test_what_came_while_nothing_could_be_read_may_come_at_once_afterwards():
    bucket = Bucket(rate=10, burst=10)
    assert bucket.take(10, 100.0)
    bucket.excuse(5.0, 105.0)
    assert [bucket.take(1, 105.0) for _ in range(51)] == [True] * 50 + [False]


def test_an_excuse_that_was_not_needed_is_not_added_to_the_next():
    bucket = Bucket(rate=10, burst=10)
    for now in (105.0, 110.0, 115.0):
        bucket.excuse(5.0, now)
    assert bucket.take(60, 115.0)
    assert not bucket.take(1, 115.0)


# ── rates of many addresses ───────────────────────────────────────────────────────────────────


def test_addresses_do_not_count_for_each_other():
    rates = Rates(2)
    assert [rates.take("a", 1.0) for _ in range(3)] == [0, 0, 0.5]
    assert [rates.take("b", 1.0) for _ in range(2)] == [0, 0]
    assert rates.take("a", 1.5) == 0


def test_a_rate_below_one_lets_one_in():
    rates = Rates(0.1)
    assert rates.take("a", 1.0) == 0
    assert rates.take("a", 1.0) == pytest.approx(10)
    assert rates.take("a", 11.1) == 0


def test_a_quiet_address_is_forgotten_when_others_come():
    rates = Rates(5)
    for number in range(1000):
        rates.take(f"a{number}", 1.0)
    assert len(rates) == 1000
    for number in range(200):
        rates.take(f"b{number}", 2.5)
    assert len(rates) == 200


def test_a_scan_costs_memory_for_its_last_moment_only():
    rates, longest = Rates(5), 0
    for number in range(20_000):
        rates.take(f"a{number}", number / 1000)  # a thousand a second
        longest = max(longest, len(rates))
    assert longest <= 400  # each is empty after 0.2 s


def test_however_many_come_at_once_only_so_many_are_kept():
    rates = Rates(5, most=100)
    for number in range(1000):
        rates.take(f"a{number}", 1.0)
        assert len(rates) <= 100


def test_who_is_busy_is_not_forgotten_in_favour_of_a_scan():
    rates = Rates(1, most=100)
    assert rates.take("busy", 1.0) == 0
    for number in range(1000):
        assert rates.take("busy", 1.0) > 0
        rates.take(f"a{number}", 1.0)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 3)), max_size=80))
def test_forgetting_changes_nothing_for_anyone(steps):
    rates, kept, now = Rates(2), {name: Bucket(2, 2) for name in "abcdef"}, 50.0
    for name, pause in steps:
        now += pause
        assert (rates.take(name, now) == 0) == kept[name].take(1, now)


# ── addresses ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7:5123", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:0DB8:1:2::", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::9]:443", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::9]", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", None),
        ("testclient", None),
        ("/run/app.sock", None),
        ("unknown", None),
        ("192.0.2.7, 192.0.2.8", None),
        ("192.0.2.700", None),
    ],
)
def test_an_address_counts_by_its_network(host, network):
    assert network_of((host, 5)) == network


def test_where_no_address_is_told_there_is_none():
    assert network_of(None) is None


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_clients_of_one_64_are_one_and_of_two_are_two(address, host):
    base = int(address) >> 64 << 64
    neighbour, stranger = base | host, base ^ (1 << 64)
    one = network_of((str(address), 1))
    if ipaddress.IPv6Address(address).ipv4_mapped is None and neighbour >> 32 != 0xFFFF:
        assert network_of((str(ipaddress.IPv6Address(neighbour)), 2)) == one
    assert network_of((str(ipaddress.IPv6Address(stranger)), 2)) != one


# ── offenders ─────────────────────────────────────────────────────────────────────────────────


def test_an_offender_has_one_line_a_minute_and_the_next_tells_of_those_in_between():
    offenders = Offenders()
    assert offenders.note("max_x", "a", 10.0) == Line("a", 0)
    for second in range(1, 6):
        assert offenders.note("max_x", "a", 10.0 + second) is None
    assert offenders.note("max_x", "a", 10.0 + MINUTE) == Line("a", 5)
    assert offenders.note("max_x", "a", 10.0 + 3 * MINUTE) == Line("a", 0)


def test_each_offender_and_each_setting_has_its_own_line():
    offenders = Offenders()
    assert offenders.note("max_x", "a", 10.0) == Line("a", 0)
    assert offenders.note("max_x", "b", 10.0) == Line("b", 0)
    assert offenders.note("max_y", "a", 10.0) == Line("a", 0)


def test_too_many_offenders_are_told_together():
    offenders = Offenders(most=3)
    lines = [offenders.note("max_x", f"a{number}", 10.0) for number in range(10)]
    assert lines == [Line("a0", 0), Line("a1", 0), Line("a2", 0), Line(OTHERS, 0), *[None] * 6]
    assert len(offenders) == 4
    assert offenders.note("max_x", "b", 10.0 + MINUTE) == Line("b", 0)  # there is room again
    assert len(offenders) <= 4


def test_offenders_of_the_past_are_not_kept_without_end():
    offenders = Offenders(most=50)
    for number in range(5000):
        offenders.note("max_x", f"a{number}", number * 2.0)
        assert len(offenders) <= 51
