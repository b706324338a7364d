"""What the clients of a history ask for."""

import random

Program = list[tuple[str, str]]
"""One transaction: (kind, keys) in turn, with kind r read, s read of a span, u locking read and update, w write, d delete."""


def programs(rng: random.Random, keys: str) -> list[Program]:
    """Make three or four client transactions."""
    if len(keys) == 2 and rng.random() < 0.5:  # tight: every cycle of two or three transactions fits
        made: list[Program] = []
        for _ in range(4):
            x, k, m = rng.random(), *rng.sample(keys, 2)
            made.append([("r", k)] if x < 0.35 else [("w", k)] if x < 0.6 else [("r", k), ("w", m)])
        return made
    single = rng.choice((0.1, 0.2, 0.5))
    return [program(rng, keys, single) for _ in range(rng.choice((3, 3, 4)))]


def program(rng: random.Random, keys: str, single: float) -> Program:
    """Make one transaction; a lone read with probability `single`."""
    x = rng.random() if rng.random() > single else 0
    if x == 0:
        return [("r", rng.choice(keys))]
    if x < 0.12:
        return [("r", rng.choice(keys)), ("r", rng.choice(keys))] if x < 0.06 else [("s", keys)]
    if x < 0.32:  # blind writes
        return [("w", k) for k in rng.sample(keys, 2)]
    made: Program = []
    for _ in range(rng.randint(1, 2)):
        y = rng.random()
        if y < 0.25:
            i = rng.randrange(len(keys) - 1)
            made.append(("s", keys[i : rng.randint(i + 2, len(keys))]))
        elif y < 0.4:
            made.append(("u", rng.choice(keys)))
        else:
            made.append(("r", rng.choice(keys)))
    for _ in range(rng.randint(1, 2)):
        made.append(("d" if rng.random() < 0.15 else "w", rng.choice(keys)))
    return made
