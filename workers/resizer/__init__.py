"""The daemon that resizes pictures: one front that owns all clients, one CPU process per core that owns none.

      clients ====> front       reads payloads into slots of its arena, checks, queues, answers
                     |  ^  \\____ dry runs, health and refusals are answered here, without a CPU process
                order|  |result, a few dozen bytes on a SOCK_SEQPACKET pair
                     v  |
                 cpu 0 .. cpu N-1, express       picture out of a place, answer back into the same place
                     |  |
        transfer: a memory for each CPU process, two places, which the front copies its pictures to

    front     owns sockets and payloads, so that a crash or a deadline (SIGKILL from outside: no Python handler
              interrupts a decoder) still ends in a clean error reply
    cpu       one per core; takes any picture
    express   takes small pictures only: two clients sending 20-megapixel pictures keep every cpu busy for hundreds of
              milliseconds, and small pictures would wait behind them (measured: 3 to 5 s without it, 13 ms with it)
    task      one picture to be resized, from its last byte read to its last byte answered
    worker    the front's view of a CPU process: its state, its tasks, and its channel, which outlives the process
    slot      (of the arena, in the front) holds one payload, and then the answer
    place     (of the transfer memory of a CPU process) holds the picture of one order, and then the answer over it

Where to start reading: `task.py`, `dispatch.py` and `frame_assembler.py` (pure), `worker_pool.py` and `scheduler.py`
(what is worked on where), then the shells: `frame_protocol.py`, `http_protocol.py`, `front.py`, `cpu.py`, `service.py`.
"""
