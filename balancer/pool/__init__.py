"""CHOICE: which backend gets the next session, and why.

                 prober                            console
     checks, health, resolves names         drain, maint, weight
                    |                                |
                    v   verdict, address             v  admin state, weight
               +----------------- board.words -----------------------+
               +----------------- board.counts, one row per worker --+
                    |  two version cells: rebuild?   ^  +1 before the dial, -1 after the close
                    v                                |
     election:  eligible backends -> policy (pure) -> shared limit (maxconn) -> backend

Start at `board` for the cells, at `election` for the choice, at `serving` for whether a client can be served now.
`policies` and `health` are pure; `shared_limit` holds the only lock of the balancer.
"""
