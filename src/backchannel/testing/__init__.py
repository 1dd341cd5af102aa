"""Tools for an application's own tests."""

from backchannel.errors import ConnectionClosed, HandshakeRefused
from backchannel.testing.strict import no_errors
from backchannel.transport.memory import MemoryClient

__all__ = ["ConnectionClosed", "HandshakeRefused", "MemoryClient", "no_errors"]
