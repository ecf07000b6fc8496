"""The daemon that resizes pictures: one front that owns every client, one CPU process per core that owns
none.

      clients ====> front       reads payloads straight into slots of the arena, judges, queues, answers
                     |  ^  \\____ dry runs, health, refusals: answered here, no CPU process involved
         order (slot)|  |result (slot, status), a few dozen bytes on a SOCK_SEQPACKET pair
                     v  |
                 cpu 0 .. cpu N-1, express       picture out of the slot, answer back into the same slot
                     |  |
        arena: slots of shared anonymous memory, made by the master before the fork

    front     owns sockets and payloads, so that a crash or a deadline (SIGKILL from outside: no handler of
    Python's can
              interrupt a decoder) still ends in a clean error reply
    cpu       one per core; takes any picture
    express   takes small pictures only: two clients sending 20-megapixel pictures keep every cpu busy for
    hundreds of
              milliseconds, and everybody else would wait behind them (measured: 3 to 5 s without it, 13 ms
              with it)
    task      one picture asked for, from its last byte read to its last byte answered
    seat      a CPU process's place as its front sees it; the process in it may change, its channel does not
    slot      (of the arena) where one payload lies and where its answer is written over it

Where to start reading: `task.py`, `dispatch.py`, `intake.py` and `outbox.py` (pure), `crew.py` and
`desk.py` (who works on what), then the shells: `client.py`, `front.py`, `cpu.py`, `service.py`.
"""
