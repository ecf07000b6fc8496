"""The wire format: frames, the gob codec, Request and Response. No sockets, no clocks, no pictures."""
