"""The peer: Django Channels with its in-memory channel layer, or as one of several nodes.

As one of several its layer is channels_redis's over pub/sub, which has no capacity to overflow.
Best configuration: async consumers, enough capacity in memory that nothing is dropped, on uvicorn
with uvloop (measured faster than daphne), no sessions, no middleware, no compression.
"""
# ruff: noqa: ARG002 (a callback takes what it is given)

from __future__ import annotations

import os

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.urls import path

layer = {
    "BACKEND": "channels.layers.InMemoryChannelLayer",
    "CONFIG": {"capacity": 1_000_000},
}
if "BROKER" in os.environ:
    layer = {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [os.environ["BROKER"]]},
    }
settings.configure(
    SECRET_KEY="benchmark",
    INSTALLED_APPS=["channels"],
    CHANNEL_LAYERS={"default": layer},
)
django.setup()


class Fanout(AsyncWebsocketConsumer):
    """Everyone in the group gets every message."""

    async def connect(self) -> None:
        self.group = self.scope["url_route"]["kwargs"]["channel"]
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, code) -> None:
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def receive(self, text_data=None, bytes_data=None) -> None:
        await self.channel_layer.group_send(self.group, {"type": "chat", "text": text_data})

    async def chat(self, event) -> None:
        await self.send(text_data=event["text"])


class Echo(AsyncWebsocketConsumer):
    """The sender gets it back."""

    async def receive(self, text_data=None, bytes_data=None) -> None:
        await self.send(text_data=text_data)


class Room(Fanout):
    """Users in rooms who hardly say anything."""

    async def receive(self, text_data=None, bytes_data=None) -> None:
        await self.send(text_data=text_data)


routes = [
    path("ws/fanout/<str:channel>", Fanout.as_asgi()),
    path("ws/echo", Echo.as_asgi()),
    path("ws/room/<str:channel>", Room.as_asgi()),
]
app = ProtocolTypeRouter({"websocket": URLRouter(routes)})
