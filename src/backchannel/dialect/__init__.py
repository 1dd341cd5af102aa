"""What a frame means: *raw* is the message itself and needs nothing; *v1* is docs/protocol.md."""

from backchannel.dialect.frames import NAME

__all__ = ["NAME"]
