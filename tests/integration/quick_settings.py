"""The Django example's settings, but for its hashing of passwords.

Its hundreds of thousands of rounds are Django's own promise, and half a second at each login.
"""

from project.settings import *  # noqa: F403 - as Django's settings are derived

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
