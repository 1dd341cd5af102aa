"""Ready-made answers to who a client is: the session's user, Starlette's, a JWT's.

Each is what ``authenticate=`` takes, at the hub or at an endpoint::

    jwt = JWT(secret, ["HS256"])
    hub = Hub(authenticate=jwt)
"""

from backchannel.auth.framework import StarletteUser, session_user, starlette_user
from backchannel.auth.token import JWT, Identity
from backchannel.errors import InvalidToken

__all__ = ["JWT", "Identity", "InvalidToken", "StarletteUser", "session_user", "starlette_user"]
