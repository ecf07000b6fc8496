"""What the benches, the comparison, the demo and the system tests share.

    process     a program in a session of its own: start it, read its log, stop it, kill what is left of it
    helpers     a module of this tree as a helper process that reports JSON; a thread for the length of a `with`
    waiting     wait for a condition with a deadline
    network     addresses, free ports, connections held open
    backends    small TCP backends: echo, scripted, verifying
    load        a load that verifies every byte of every reply, and counts every failure by its class
    arrivals    connections at a fixed rate, whatever becomes of the earlier ones
    kernel      TCP sockets as the kernel lists them
    measure     CPU and memory of a process tree

RULES: nothing waits for time, only for a line of a log or a condition, with a deadline. A process that is started here
dies with the one that started it. Tests import from here; nothing here imports tests.
"""
