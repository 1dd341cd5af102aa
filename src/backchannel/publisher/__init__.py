"""Publishing to a hub from anywhere, without running one."""

from backchannel.publisher.awaiting import AsyncPublisher
from backchannel.publisher.blocking import Publisher

__all__ = ["AsyncPublisher", "Publisher"]
