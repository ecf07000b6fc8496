"""Client addresses, access rules and routes: what a listener decides about a client before it is relayed.

    proxy_protocol.py  the PROXY header, versions 1 and 2: read and written
    access.py          networks that are let in or kept out
    hello.py           which name a TLS client asks for
    route.py           one route of a listener

RULES: no sockets; access.py reads the files that a configuration names. The phases that use these are in relay/phases.py.
"""
