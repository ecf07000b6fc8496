"""How a session ends: two letters, as in HAProxy's log.

RULES: names only. First letter: C the client, S the backend, c and s the same by a timeout, P a limit of ours, R a
resource of ours, K an operator or a drain, - neither side. Second: C while connecting, Q while queued, D while bytes
flowed, - done.
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
