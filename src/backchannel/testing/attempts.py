"""What every broker promises of second attempts; part of ``broker.BrokerContract``.

Who does not know whether something was published publishes it again, under the same key.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from backchannel.errors import BrokerUnavailable
from backchannel.testing.recording import CARS, KEPT, Nodes, frames

__all__ = ["AttemptContract"]


class AttemptContract:
    """The tests."""

    async def test_a_second_attempt_is_none(self, nodes: Nodes) -> None:
        """Also at another node; it has the position of the first, and nobody hears it again."""
        all_ = await nodes(2)
        for node in all_:
            await node.listen(CARS)
        first = await all_[0].publish(CARS, "1", KEPT, key="session 1")
        other = await all_[0].publish(CARS, "2", KEPT, key="session 2")
        again = await all_[-1].publish(CARS, "1", KEPT, key="session 1", again=True)
        assert again.position == first.position != other.position
        await all_[-1].publish(CARS, "end", KEPT)
        for node in all_:
            assert await node.texts(3) == ["1", "2", "end"]
        assert frames(await all_[0].broker.history("cars", None, 10)) == ["1", "2", "end"]

    async def test_a_second_attempt_whose_first_did_not_arrive_appears_once_or_is_unsure(
        self, nodes: Nodes
    ) -> None:
        """And where it is unsure it is nowhere."""
        all_ = await nodes(2)
        await all_[0].listen(CARS)
        appeared: list[str] = []
        unsure: list[bool] = []
        for number in range(3):
            await all_[0].publish(CARS, f"other {number}", KEPT)
            try:
                await all_[-1].publish(CARS, f"{number}", KEPT, key=f"key {number}", again=True)
            except BrokerUnavailable as error:
                unsure.append(error.unsure)
            else:
                appeared.append(f"{number}")
        await all_[0].publish(CARS, "end")
        heard: list[Any] = []
        while heard[-1:] != ["end"]:
            heard.append((await all_[0].next()).frame)
        assert [text for text in heard if text.isdigit()] == appeared
        assert all(unsure)

    async def test_a_second_attempt_does_not_come_behind_what_its_session_said_later(
        self, nodes: Nodes
    ) -> None:
        """It is not published, and its publisher is told."""
        all_ = await nodes(2)
        if not all_[0].broker.shared:
            return  # where nothing is on its way, nothing comes late
        await all_[0].publish(CARS, "2", KEPT, key="session:2")
        with pytest.raises(BrokerUnavailable):
            await all_[-1].publish(CARS, "1", KEPT, key="session:1", again=True)
        await all_[-1].publish(CARS, "3", KEPT, key="session:3")
        assert frames(await all_[0].broker.history("cars", None, 10)) == ["2", "3"]

    async def test_what_a_session_had_on_its_way_is_none_once_it_has_gone_on_elsewhere(
        self, nodes: Nodes
    ) -> None:
        """It would come behind what is newer; what was sent again meanwhile may be unsure."""
        all_ = await nodes(2)
        if not all_[0].broker.shared:
            return  # where nothing is on its way, nothing comes late
        with contextlib.suppress(BrokerUnavailable):
            await all_[-1].publish(CARS, "1", KEPT, key="session:1", again=True, turn=1)
        await all_[-1].publish(CARS, "2", KEPT, key="session:2", turn=1)
        for _ in range(2):
            with contextlib.suppress(BrokerUnavailable):
                await all_[0].publish(CARS, "1", KEPT, key="session:1")
        await all_[0].publish(CARS, "others'", KEPT, key="another session:1")
        kept = frames(await all_[0].broker.history("cars", None, 10))
        assert [text for text in kept if text != "1"] == ["2", "others'"]
        assert kept.index("2") == kept.count("1") <= 1
