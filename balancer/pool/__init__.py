"""CHOICE: which backend gets the next session, and why.

                 prober                            console
     checks, judges (health), resolves        drain, maint, weight
                    |                                |
                    v   verdict, address             v  wishes
               +----------------- board, ADMIN_ROW ------------------+
               +----------------- board, one row per worker ---------+
                    |  two version cells: rebuild?   ^  +1 before the dial, -1 after the close
                    v                                |
     election:  eligible backends -> policy (pure) -> seat (limits) -> backend

Start at `board` for the cells, at `election` for the act. `policies` and `health` are pure; `limits` holds
the only lock of the balancer; `resolver` is the only place that asks a name server, and lives in the
prober.
"""
