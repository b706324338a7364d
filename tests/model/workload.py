"""What the clients of a history ask for."""

import random

Program = list[tuple[str, str]]
"""One transaction: (kind, keys) in turn.

Kinds: r read, s read of a span, u locking read and update, w write, d delete; f flush the buffer, p savepoint, b roll back to it.
"""


def programs(rng: random.Random, keys: str, p_flush: float = 0) -> list[Program]:
    """Make three or four client transactions; p_flush: how many of the longer ones flush their buffer."""
    if len(keys) == 2 and rng.random() < 0.5:  # tight: every cycle of two or three transactions fits
        made: list[Program] = []
        for _ in range(4):
            x, k, m = rng.random(), *rng.sample(keys, 2)
            made.append([("r", k)] if x < 0.35 else [("w", k)] if x < 0.6 else [("r", k), ("w", m)])
        return made
    single = rng.choice((0.1, 0.2, 0.5))
    return [large(rng, keys) if rng.random() < p_flush else program(rng, keys, single) for _ in range(rng.choice((3, 3, 4)))]


def large(rng: random.Random, keys: str) -> Program:
    """Make a transaction that flushes its buffer once or twice, and may roll back to a savepoint."""
    made: Program = [("r", rng.choice(keys))] if rng.random() < 0.5 else []
    write = [("d" if rng.random() < 0.1 else "w", rng.choice(keys)) for _ in range(4)]
    made.append(write[0])
    rolls_back = rng.random() < 0.5
    if rolls_back:
        made += [("p", ""), write[1]]
    elif rng.random() < 0.5:
        made.append(write[1])
    made.append(("f", ""))
    if rng.random() < 0.3:
        made.append(("r", write[rng.randrange(2)][1]))
    if rolls_back:
        made += [("b", ""), ("r", write[1][1])] if rng.random() < 0.5 else [("b", "")]
    if rng.random() < 0.5:
        made.append(write[2])
    if rng.random() < 0.3:
        made += [("f", ""), ("r", write[2][1])]
    if rng.random() < 0.3:
        made.append(write[3])
    return made


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
