"""Configurations with several listeners and pools, made at random around what must not change."""

import random


def random_sections(dice: random.Random, ports: tuple[int, int], backends: list[str]) -> str:
    """The listener and the pool `stay`, a listener with a name of the moment and routes to pools of the moment, and up to
    two more listeners and pools."""
    names = dice.sample(["web", "www", "mail", "api", "shop", "db"], 6)
    pools = ["stay", *dice.sample(["a", "b", "c", "d"], dice.randint(1, 3))]
    lines = ["[balancer]", f"retries = {dice.randint(1, 5)}"]
    for name, port in zip(("stay", names[0]), ports, strict=True):
        lines += [f"[listener {name}]", f"bind = 127.0.0.1:{port}"]
        rule = f"    from 127.0.0.1 -> {dice.choice(pools)}"
        lines += ["route =", *[rule] * dice.randint(0, 1), f"    -> {dice.choice(pools)}"]
    for name in names[1 : 1 + dice.randint(0, 2)]:
        lines += [f"[listener {name}]", "bind = 127.0.0.1:0", f"pool = {dice.choice(pools)}"]
    for pool in pools:
        lines += [
            f"[pool {pool}]",
            f"balance = {dice.choice(['leastconn', 'roundrobin', 'p2c'])}",
            "upstream =",
        ]
        chosen = backends if pool == "stay" else dice.sample(backends, dice.randint(1, len(backends)))
        lines += [f"    {address}" for address in chosen]
    return "\n".join([*lines, ""])
