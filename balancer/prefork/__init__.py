"""The prefork machine: a master that holds sockets and children, and the loop each child runs.

RULES: knows neither traffic nor pictures, and imports nothing of its users. A service brings a `Plan` (plan.py) and is
given a `Child` (child.py) in every process it asked for.

    run_master(service)
      master.py     boot, one turn, stop              reload.py   a new generation beside the old one
      children.py   who lives, who is due (pure)      spawn.py    fork: what a child must drop and take
      health.py     which slots may be given work (pure)   steering.py   shares -> a program in the kernel
      listeners.py  sockets that outlive processes    upgrade.py  sockets that outlive the master
      signals.py    one signal a turn                 pidfile.py, notify.py   what the machine around us is told

    child.py   heartbeat, drain, bell, adoption    loop.py, timers.py   events and time
    cells.py   the shared table                    log.py, titles.py, units.py, config.py   words
"""
