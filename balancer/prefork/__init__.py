"""The prefork machine: a master that holds sockets and children, and the loop each child runs.

RULES: knows neither traffic nor pictures, and imports nothing of its users. A service brings a `Plan` (plan.py) and is
given a `Child` (child.py) in every process it asked for.

    run_master(service)
      master.py     one turn after another            boot.py     lock, bind, drop privileges
      lifecycle.py  serve, reload, grow, stop         reload.py   a new generation beside the old one
      manager.py       fork, hear, reap, end the hung    retire.py   a generation on its way out
      children.py   who lives, who is due (pure)      spawn.py    fork: what a child must drop and take
      slots.py      which slots may be given work (pure)   steering.py   shares -> a program in the kernel
      slot_table.py     keeps the table of slots true     signals.py  one signal a turn
      listeners.py  sockets that outlive processes    upgrade.py, handover.py   sockets that outlive the master
      binding.py    one bound socket                  pidfile.py, notify.py   what the machine around us is told

    child.py   heartbeat, drain, bell, adoption    loop.py, timers.py   events and time
    cells.py   the shared table                    log.py, titles.py, units.py, config.py   words
"""
