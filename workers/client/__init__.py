"""resize-client: a directory of pictures through a balancer to its resizers, and the results into another directory.

    scan  -> pictures -> naming -> jobs --> lane (which connection, when again) --> link (one socket)
                                    ^        |  pacing: how many connections          |  connection: in flight by ID
                                    |        v                                        v
    report, progress <- run <- save, journal <- judge (is the reply what was asked?) <- replies

RULES: one thread, one loop. A reply never chooses a path: what it answers is found by its ID in our own record, where
it goes was decided before it was asked for. Pure: naming, judge, jobs, pacing, connection, report's figures.
"""
