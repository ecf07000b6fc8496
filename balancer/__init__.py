"""prefork-balancer: a layer-4 TCP load balancer of forked, shared-nothing workers.

              master   binds one socket per slot and address, forks, reaps, clears rows, steers; touches no traffic
                | fork                      | fork            | fork
 client ==> slot k's queue ==> worker k     prober            console <== balancerctl, curl, Prometheus
                                 |  elect(verdicts, loads)      |
                                 v                              v
                        +---------------- board: one shared table ------------------+
                        | row per process: heartbeat, sessions per backend, totals  |
                        | prober's row: verdict per backend, one word               |
                        +-----------------------------------------------------------+
                                 | count +1 BEFORE the dial, -1 in the one closer
                                 v
                     session: fd events -> relay (amounts) -> interest / shut / done
                                 | read+write while small, splice(2) once it is a bulk flow
                                 v
                              backend

The words, each with one meaning:
    master      the process that binds, forks, reaps and obeys signals
    worker      a forked process that accepts and relays
    prober      the one process that checks backends and resolves names
    console     the one process that serves status and admin commands
    backend     one address that can serve;  pool: all of them
    session     one client connection plus its backend connection;  half: one direction of it
    board       the shared-memory table;  row: one process's part;  cell: one int64 with one writer
    slot        a worker's place: its listening socket and its queue outlive the process that serves it
    generation  the processes forked from one reading of the configuration

Where to start reading: `prefork/cells.py` (what is shared), `prefork/children.py` (who lives), `relay/half.py` (what a
byte's way is), `pool/policies.py` (who is chosen); then the shells: `prefork/master.py`, `worker.py`, `relay/session.py`.
"""

__version__ = "0.1.0"
