"""RFC 6455 bytes; knows nothing of channels, event loops and sockets."""
