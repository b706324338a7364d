"""Clients and faults for a simulated Raft group, all from one seed.

    python -m tests.sim.raft_sim --seed N [--seconds S]
"""

import argparse
import time

from dsdb.raft.messages import Membership, MembershipChange, ReplicaId
from tests.sim.raft_checker import Violation
from tests.sim.raft_world import Host, Rules, World

HOSTS_MAX = 9  # over a whole run


class Simulation(World):
    """One run: clients propose and read, and a nemesis strikes."""

    def __init__(self, seed: int, rules: Rules | None = None) -> None:
        super().__init__(seed, rules)
        self._clients_rest_until = 0.0
        self._after(5, self._client)
        self._after(200, self._nemesis)

    def _client(self) -> None:
        for host in self._leaders() if self.now >= self._clients_rest_until else ():
            node = self._prepared(host)
            for _ in range(self.chance.choice((1, 1, 1, 5))):
                self._serial += 1
                placed = node.propose(b"%d" % self._serial + b"." * self.chance.choice((1, 1, 150)))
                if placed is not None:
                    host.proposed[placed[0]] = placed[1]
            if self.chance.random() < 0.4:
                context = b"%d" % self._serial
                if node.read_index(context):
                    host.reads[context] = self.checker.acknowledged_index
            self._pump(host)
        if not self._is_healed:
            self._after(self.chance.choice((5, 20, 50, 400)), self._client)

    def _nemesis(self) -> None:
        if self._is_healed:
            return
        up = [host for host in self.hosts.values() if host.node is not None]
        action = self.chance.choices(
            (
                self._nemesis_crash,
                self._nemesis_partition,
                self._nemesis_network,
                self._nemesis_membership,
                self._nemesis_leader,
                self._nemesis_compact,
                self._nemesis_usurp,
            ),
            weights=(4, 4, 2, 4, 3, 3, 16),
        )[0]
        if up:
            action(up)
        self._after(self.chance.choice((20, 100, 250, 600)), self._nemesis)

    def _nemesis_crash(self, up: list[Host]) -> None:
        leaders = self._leaders()
        victims = leaders[:1] if leaders and self.chance.random() < 0.5 else [self.chance.choice(up)]
        if self.chance.random() < 0.1:
            victims = up
        for host in victims:
            self._crash(host)

    def _nemesis_partition(self, up: list[Host]) -> None:
        self._cut.clear()
        if self.chance.random() < 0.3:
            return
        is_one_way = self.chance.random() < 0.3
        side = {host.replica for host in self.hosts.values() if self.chance.random() < 0.4}
        for a in self.hosts:
            for b in self.hosts:
                if a in side and b not in side:
                    self._cut.add((a, b))
                    if not is_one_way:
                        self._cut.add((b, a))
        self.counts["one-way partition" if is_one_way else "partition"] += 1

    def _nemesis_network(self, up: list[Host]) -> None:
        self._drop = self.chance.choice((0.0, 0.0, 0.05, 0.3))

    def _nemesis_leader(self, up: list[Host]) -> None:
        leaders = self._leaders()
        if leaders and self.chance.random() < 0.7:
            host = self.chance.choice(leaders)
            node = self._prepared(host)
            if node.transfer_leadership(self.chance.choice(node.membership.voters)):
                self.counts["transfer"] += 1
        else:
            host = self.chance.choice(up)
            self._prepared(host).campaign()
        self._pump(host)

    def _nemesis_usurp(self, up: list[Host]) -> None:
        """Keep a leader from being heard, and have others campaign at the worst moment."""
        leaders = self._leaders()
        if not leaders or self._mute:
            return
        leader = self.chance.choice(leaders)
        others = [host for host in up if host is not leader]
        kind = self.chance.choice(("mute", "restart", "transfer", "cut"))
        self.counts[f"usurped by {kind}"] += 1
        if kind == "transfer":
            node = self._prepared(leader)
            node.transfer_leadership(self.chance.choice(node.membership.voters))
            self._pump(leader)
        elif kind == "restart":
            for host in others:
                self._crash(host, restart_ms=5)
        elif kind == "cut":
            self._cut.update(pair for host in others for pair in ((leader.replica, host.replica), (host.replica, leader.replica)))
        if kind == "cut":
            self._after(1500, self._cut.clear)
            self._after(1500, lambda: self._mute.add(leader.replica))
            # Without work the leader falls quiet, and its replica does not notice that it is alone.
            self._clients_rest_until = self.now + 2000
        else:
            self._mute.add(leader.replica)
        self._after(2000 if kind == "cut" else 800, self._mute.clear)
        for host in self.chance.sample(others, min(2, len(others))):
            self._after(self.chance.choice((10, 30, 100, 260, 300)), lambda host=host: self._campaign(host))  # type: ignore[misc]
        if others and self.chance.random() < 0.5:
            # A voter that may just have voted comes back within the same campaign.
            victim = self.chance.choice(others)
            self._after(self.chance.randrange(15, 60), lambda: self._crash(victim, restart_ms=2) if victim.node is not None else None)

    def _campaign(self, host: Host) -> None:
        if host.node is not None:
            self._prepared(host).campaign()
            self._pump(host)

    def _nemesis_compact(self, up: list[Host]) -> None:
        for host in up:
            if host.node is not None and self.chance.random() < 0.7:
                index = host.disk.written.applied
                host.disk.write(lambda image, index=index: image.compact(index))
                host.node.compacted()
                self.counts["log compacted"] += 1

    def _nemesis_membership(self, up: list[Host]) -> None:
        leaders = self._leaders()
        if not leaders:
            return
        host = self.chance.choice(leaders)
        node = self._prepared(host)
        change = self._random_change(node.membership)
        if change is None:
            return
        try:
            placed = node.propose_membership(change, b"context")
        except ValueError:
            return
        self.counts["membership proposed"] += placed is not None
        self._pump(host)

    def _random_change(self, membership: Membership) -> MembershipChange | None:
        """Promote, demote, add or remove, sometimes several at once."""
        chance = self.chance
        voters, learners = list(membership.voters), list(membership.learners)
        chance.shuffle(voters)
        chance.shuffle(learners)
        kind = chance.choice(("learner", "promote", "promote", "demote", "remove", "swap", "double"))
        if kind == "promote" and learners:
            return MembershipChange(add_voters=(learners[0],))
        if kind == "swap" and learners:
            self.counts["swap proposed"] += 1
            return MembershipChange(add_voters=(learners[0],), remove=(voters[0],))
        if kind == "double" and len(voters) > 2 and learners:
            return MembershipChange(add_voters=(learners[0],), add_learners=(voters[0],), remove=(voters[1],))
        if kind == "demote" and len(voters) > 1:
            return MembershipChange(add_learners=(voters[0],))
        if kind == "remove" and len(voters) + len(learners) > 3:
            return MembershipChange(remove=((learners or voters)[0],))
        if len(self.hosts) < HOSTS_MAX and len(membership.members()) < 6:
            replica = ReplicaId(len(self.hosts) + 1)
            self._add_host(replica, Membership())
            return MembershipChange(add_learners=(replica,))
        return None


def simulate(seed: int, seconds: float, rules: Rules | None = None) -> Simulation:
    """Run one seed to its end. Raises Violation, with the seed, when a property breaks."""
    simulation = Simulation(seed, rules)
    try:
        simulation.run(seconds)
    except (AssertionError, LookupError) as error:
        # A core that trips over its own log has broken a property too.
        raise Violation(f"seed {seed} at {simulation.now:.1f} ms: {error!r}") from error
    return simulation


def search(minutes: float, first_seed: int, seconds: float) -> bool:
    """Run seed after seed, and print the failing ones.  Say whether there was none."""
    began, seed, failing = time.perf_counter(), first_seed, []
    while time.perf_counter() - began < minutes * 60:
        try:
            simulate(seed, seconds)
        except (Violation, AssertionError) as error:
            failing.append(seed)
            print(f"seed {seed}: {error}", flush=True)
        seed += 1
    rate = (seed - first_seed) / (time.perf_counter() - began)
    print(f"{seed - first_seed} seeds of {seconds:g} s, {rate:.2f} seeds/s; failing: {failing or 'none'}")
    return not failing


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate a Raft group under faults.")
    parser.add_argument("--seed", type=int, default=1, help="the first one, of a search")
    parser.add_argument("--seconds", type=float, default=20.0, help="of simulated faults, before healing")
    parser.add_argument("--search", type=float, metavar="MINUTES", help="run seed after seed for so long, and print the failing ones")
    arguments = parser.parse_args()
    if arguments.search is not None:
        raise SystemExit(0 if search(arguments.search, arguments.seed, arguments.seconds) else 1)
    start = time.perf_counter()
    simulation = simulate(arguments.seed, arguments.seconds)
    elapsed = time.perf_counter() - start
    for name, count in sorted(simulation.counts.items()):
        print(f"{count:8d}  {name}")
    rate = simulation.now / 1000 / elapsed
    print(f"seed {arguments.seed}: trace {simulation.trace:08x}, {simulation.events} events, {rate:.0f} simulated seconds per second")


if __name__ == "__main__":
    main()
