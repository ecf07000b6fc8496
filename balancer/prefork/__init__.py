"""The prefork machine: a master that holds listening sockets and child processes, and what a child is given.

RULES: knows neither traffic nor pictures, and imports nothing of its users. A service brings a `Plan` (plan.py) and is
given a `Child` (child.py) in every process it asked for.

    run_master(service)
      master.py       one turn after another: signals, boot, stop
      generations.py  reload, growing and shrinking            changes.py     what a reload changes, in words
      retirement.py   the end of one generation
      upgrade.py      another program takes over the sockets        boot.py        lock, bind, drop privileges
      processes.py    fork, hear, reap, end the hung                slot_table.py  which queue is whose, shares
      fork.py         what a child closes and sets up               channels.py    socket pairs between children
      plan.py         what a service asks for                       child.py       heartbeat, drain, wake, adoption
      sockets.py      listening sockets that outlive processes      bind.py        one address; inherited.py  found open

    pure: children.py (registry, back-off)   slots.py (verdicts on slots)   steering.py (shares -> a BPF program)
    alone: pidfile.py   notify.py (systemd)   titles.py (ps)   limits.py (rlimits)   options.py
"""
