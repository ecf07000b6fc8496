"""The picture service: a resizer daemon, a client, and the wire format between them."""
