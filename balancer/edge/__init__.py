"""What stands before the relay: who a client is, whether it may come in, and where it wants to go.

    proxy_protocol.py  the PROXY header, versions 1 and 2: read and written
    access.py          networks that are let in or kept out
    hello.py           which name a TLS client asks for
    route.py           one route of a listener

RULES: pure: bytes and addresses in, answers out. The phases that read a client's first bytes with these are the relay's
(relay/phases.py). Nothing here costs a session of a listener that does not ask for it.
"""
