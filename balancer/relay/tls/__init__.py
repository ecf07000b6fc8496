"""TLS in the relay: a stream over memory BIOs, the handshake as a phase, the session whose sides are streams."""
