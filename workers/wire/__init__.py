"""Bytes to messages and back: frames, the gob codec, Request and Response. No sockets, clocks or pictures."""
