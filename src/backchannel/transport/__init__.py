"""How frames reach a client: any ASGI server, or memory (for tests)."""
