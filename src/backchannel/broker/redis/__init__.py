"""The broker over Redis or Valkey."""

from backchannel.broker.redis.broker import RedisBroker

__all__ = ["RedisBroker"]
