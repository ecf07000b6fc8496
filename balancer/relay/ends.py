"""How a session can end: two letters, who and when, as HAProxy's logs taught everybody to read them.

RULES: names only. First letter: C client, S backend, c/s the same by a timeout, P our own limit, R our own resources,
K an operator or a drain, - nobody. Second: C while connecting, Q while queued, D while bytes flowed, - done.
"""

CLEAN = "--"
CLIENT_LEFT_CONNECTING = "CC"
CLIENT_LEFT_QUEUED = "CQ"
CLIENT_RESET = "CD"
CLIENT_IDLE = "cD"
NO_BACKEND = "SC"
CONNECT_TIMEOUT = "sC"
QUEUE_TIMEOUT = "sQ"
BACKEND_RESET = "SD"
BACKEND_IDLE = "sD"
OWN_RESOURCES = "RC"
OWN_FAULT = "RD"
KILLED = "KD"
