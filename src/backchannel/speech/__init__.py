"""Connections that speak the dialect v1: what differs from raw ones, on the server."""
