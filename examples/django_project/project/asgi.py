"""Django and the hub as one ASGI app: the hub's URLs are its own, all others are Django's."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
django = get_asgi_application()

from backchannel.session.django import close_on_logout  # noqa: E402 - Django must be set up
from project.chat import hub  # noqa: E402

close_on_logout(hub)
application = hub.wrap(django)
