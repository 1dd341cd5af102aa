"""The browser's client by its own tests: `npm test` in clients/js, with whatever Node there is.

They say too whether what the package serves is the build of its source, and check its types.
"""

from __future__ import annotations

import re

import pytest


@pytest.mark.timeout(240)
def test_the_client_passes_its_own_tests(npm_of_the_client, node):
    done = npm_of_the_client.run(*node[1], "test", cwd=npm_of_the_client.home)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    passed = re.search(r"^(?:#|ℹ) pass (\d+)$", done.stdout, re.MULTILINE)  # noqa: RUF001
    assert passed is not None
    assert int(passed[1]) > 80
