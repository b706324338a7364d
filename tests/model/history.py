"""One history from one seed: make the world and its clients, run it, let it become quiet, judge it."""

from tests.model.gateway import Client, Gateway
from tests.model.verdict import verdict
from tests.model.workload import programs
from tests.model.world import World


def history(seed: int, off: frozenset[str] = frozenset(), trace: bool = False) -> tuple[str | None, World, list[Client]]:
    """Run one history without the rules `off`.  Gives the kind of violation or None, the world at its end, and the clients."""
    world = World(seed, off, trace)
    rng = world.rng
    gateway = Gateway(world)
    made = programs(rng, world.keys, world.p_flush)
    if world.drill:
        made[:2] = [[("w", k) for k in rng.sample(world.keys, 2)] for _ in range(2)]
    clients = [Client(number, program) for number, program in enumerate(made)]
    for client in clients:
        if rng.random() < world.p_crash:
            client.crash_at = rng.randint(4, 30)
        client.slow = rng.random() < world.p_slow
        world.start(gateway.run(client), client)
    for _ in range(world.janitors):
        if rng.random() < world.p_janitor:
            world.start(gateway.janitor(rng.randint(2, 40 if world.drill else 12)))
    # Stagger the starts, so that real-time edges occur.
    held = [event for event in world.events if rng.random() < 0.4]
    world.events[:] = [event for event in world.events if event not in held]
    world.late.extend(held)
    world.run()
    # All that was sent has arrived; now clean up by the ordinary means.
    world.quiet()
    if not world.problem:
        world.start(gateway.sweep())
        world.run()
    return verdict(world, clients), world, clients
