"""Tools for an application's own tests."""

from backchannel.errors import ConnectionClosed, HandshakeRefused
from backchannel.transport.memory import MemoryClient

__all__ = ["ConnectionClosed", "HandshakeRefused", "MemoryClient"]
