"""How a session ends: two letters, as in HAProxy's log.

RULES: names only. First letter: C the client, S the backend, c and s the same by a timeout, P a rule of ours, R a
resource of ours, K an operator or a drain, D a backend that went down, - neither side. Second: C while connecting, R
while a client's first bytes are waited for, Q while queued, D while bytes flowed, - done.
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
PREREAD_TIMEOUT = "cR"
DENIED = "PR"
OWN_RESOURCES = "RC"
OWN_FAULT = "RD"
KILLED = "KD"
BACKEND_DOWN = "DD"

# Each is a column of a listener's block on the board, in this order.
ORDER = (
    CLEAN,
    CLIENT_LEFT_CONNECTING,
    CLIENT_LEFT_QUEUED,
    CLIENT_RESET,
    CLIENT_IDLE,
    NO_BACKEND,
    CONNECT_TIMEOUT,
    QUEUE_TIMEOUT,
    BACKEND_RESET,
    BACKEND_IDLE,
    OWN_RESOURCES,
    OWN_FAULT,
    KILLED,
    DENIED,
    PREREAD_TIMEOUT,
    BACKEND_DOWN,
)
REFUSED = (
    QUEUE_TIMEOUT,
    OWN_RESOURCES,
    DENIED,
    PREREAD_TIMEOUT,
)  # by a limit or a rule of ours, or of this machine
FAILED = (NO_BACKEND, CONNECT_TIMEOUT)  # no backend could be reached

# The rules of a listener that turn a client away, or with dry-run would, each a column as well. first-bytes: what it has
# sent is not what is read first (a PROXY header, a ClientHello, an SSLRequest), or was not whole in time.
DENIALS = ("deny", "allow", "source-maxconn", "source-rate", "proxy-trusted", "no-route", "first-bytes")
