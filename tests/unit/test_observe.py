"""How values of a client are shown in log lines."""

import pytest

from backchannel.observe import address


@pytest.mark.parametrize(
    ("client", "shown"),
    [
        (("127.0.0.1", 5123), "127.0.0.1:5123"),
        (("192.0.2.1", 0), "192.0.2.1"),
        (("2001:db8::1", 443), "[2001:db8::1]:443"),
        (("2001:db8::1", 0), "2001:db8::1"),
        (("testclient", 50000), "testclient:50000"),
        (("a\nb c", 1), "'a\\nb c':1"),
        (None, "unknown"),
    ],
)
def test_a_clients_address_reads_as_people_write_it(client, shown):
    assert address(client) == shown
