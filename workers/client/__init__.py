"""resize-client: sends the pictures of a directory through a balancer to its resizers and saves the results.

    scan -> naming -> jobs --> dispatcher (which connection, when again) --> connection (one socket)
                       ^        |  concurrency: how many connections         |  pipeline: requests in flight by ID
                       |        v                                            v
    report, progress <- run <- output, journal <- validation (is the reply what was asked for?) <- replies

RULES: one thread, one event loop. A reply never chooses a path: its ID selects a job of this client, and the job's
target path was fixed before the request was sent. Pure modules: naming, validation, jobs, concurrency, pipeline,
and the figures of report.
"""
