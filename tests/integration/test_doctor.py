"""What the doctor advises works with a real hub."""

from __future__ import annotations

import re
import time

import jwt
import pytest

from backchannel.cli.doctor import diagnose

SECRET = "a secret for tests that is long enough for HS256"
COMMAND = "uvicorn signed:app --port {port} --log-level warning --ws backchannel.transport.uvicorn:Protocol"


@pytest.fixture
def signed(start):
    """A hub that admits users alone, by a JWT or a ticket."""
    return start("signed", COMMAND, env={"SECRET": SECRET})


async def test_each_way_to_try_as_a_user_that_is_advised_is_one(signed):
    url = f"ws://127.0.0.1:{signed.port}/ws/me"
    token = jwt.encode({"sub": "ana", "exp": int(time.time()) + 600}, SECRET, "HS256")
    ticket = (await signed.request("POST", "/ticket", params={"user": "ana"})).text
    refused = await diagnose(url)
    assert refused.title.startswith("HTTP 401")
    (advice,) = [line for line in refused.advice if line.startswith("To try as a user")]
    assert "?token=" not in str(refused)
    header = re.search(r'--header "(Authorization): (Bearer )TOKEN"', advice)
    offered = re.search(r"--subprotocol (\S+) --subprotocol TOKEN", advice)
    link = re.search(r'"(ws://\S+\?ticket=)bct_…"', advice)
    for way in (
        await diagnose(url, headers=[(header[1], header[2] + token)]),
        await diagnose(url, headers=[("Cookie", f"token={token}")]),
        await diagnose(url, subprotocols=[offered[1], token]),
        await diagnose(link[1] + ticket),
    ):
        assert way.ok, way
    assert not (await diagnose(f"{url}?token={token}")).ok
