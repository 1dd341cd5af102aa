"""A Django project with live chat: Django's own login, sessions and users, in a WebSocket.

Needs:   django
Run it:  in a clone: python3 dev.py example django_project
         elsewhere: pip install django /path/to/the/clone
         and then, in this folder: backchannel run serve.py:application
Open:    http://localhost:8888/ in two browsers; sign in as ana and as bob, password "chat"

This file makes the database and the two users, so that there is one command. A project of your own
needs what is in project/asgi.py, and project/chat.py.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

from project.asgi import application, hub

__all__ = ["application", "hub"]


def prepare() -> None:
    """Make the database with ana and bob in it, where it is missing."""
    from django.contrib.auth import get_user_model  # noqa: PLC0415
    from django.core.management import call_command  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    users = get_user_model().objects
    for name in ("ana", "bob"):
        if not users.filter(username=name).exists():
            users.create_user(name, password="chat")


prepare()
