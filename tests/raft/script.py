"""Golden scripts of the Raft core: commands to a small group, and what every replica did about them.

A script is a sequence of blocks: prose behind `#`, commands one a line, `---`, then the output. Commands:

    group voters=1,2,3 [learners=4] [born=N]   new replicas, followers at term 0
    new 4                                      an empty replica
    tick 1 [times]                             campaign 1           transfer 1 to=2        compact 1
    propose 1 data [data …]                    change 1 [voters=4] [learners=5] [remove=2]
    read 1 context                             supported 2 yes|no   barred 2 yes|no        renew 1 2
    unreachable 1 2                            snapshot-failed 1 2  quorum 1 [dead=2,3]
    turn [1 …]         take and obey every Ready once; fsyncs start, messages go to the network
    sync [1 …]         all running fsyncs end, the oldest first
    sync-one 1         only the oldest ends
    deliver [1>2 …]    hand over the messages on these links (or all), in order
    drop [1>2 …]       lose them
    settle             turn, sync and deliver until nothing is left; prints only what changed at the end
    settle-but 3       the same, losing whatever goes to or comes from replica 3
    restart 1          lose what was not synced, and start again
    status [1 …]
"""

import random
from collections import deque
from pathlib import Path

import msgspec

from dsdb.raft.config import RaftConfig
from dsdb.raft.messages import (
    Append,
    AppendReply,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Membership,
    MembershipChange,
    Message,
    ReplicaId,
    SnapshotMetadata,
    TimeoutNow,
    Vote,
    VoteReply,
    decode_config_entry,
)
from dsdb.raft.node import RaftNode
from dsdb.raft.ready import Ready, StableMark
from tests.raft.disk import Disk

CONFIG = RaftConfig(election_ticks=5, heartbeat_ticks=1, inflight_messages_max=3, append_bytes_max=10, uncommitted_bytes_max=100)


class Group:
    """The replicas of a script, their disks, and the network between them."""

    def __init__(self) -> None:
        self.disks: dict[int, Disk] = {}
        self.nodes: dict[int, RaftNode] = {}
        self.syncing: dict[int, deque[tuple[StableMark | None, tuple[Message, ...], int]]] = {}
        self.links: dict[tuple[int, int], list[Message]] = {}
        self.output: list[str] = []
        self.is_silent = False

    def say(self, text: str) -> None:
        if not self.is_silent:
            self.output.append(text)

    def run(self, line: str) -> None:
        command, *words = line.split()
        options = dict(word.split("=", 1) for word in words if "=" in word)
        plain = [word for word in words if "=" not in word]
        getattr(self, "do_" + command.replace("-", "_"))(plain, options)

    # --- setting up ---

    def do_group(self, plain: list[str], options: dict[str, str]) -> None:
        membership = Membership(voters=ids(options.get("voters", "")), learners=ids(options.get("learners", "")))
        for replica in membership.members():
            self.start(replica, Disk(membership, int(options.get("born", "0"))))

    def do_new(self, plain: list[str], options: dict[str, str]) -> None:
        self.start(int(plain[0]), Disk(Membership()))

    def do_restart(self, plain: list[str], options: dict[str, str]) -> None:
        disk = self.disks[int(plain[0])]
        disk.crash(0)
        self.start(int(plain[0]), disk)

    def start(self, replica: int, disk: Disk) -> None:
        self.disks[replica] = disk
        self.nodes[replica] = RaftNode(ReplicaId(replica), CONFIG, disk, random.Random(replica))
        self.syncing[replica] = deque()

    # --- calls ---

    def do_tick(self, plain: list[str], options: dict[str, str]) -> None:
        for _ in range(int(plain[1]) if len(plain) > 1 else 1):
            self.nodes[int(plain[0])].tick()

    def do_campaign(self, plain: list[str], options: dict[str, str]) -> None:
        self.nodes[int(plain[0])].campaign()

    def do_transfer(self, plain: list[str], options: dict[str, str]) -> None:
        self.say(f"{plain[0]}: transfer {self.nodes[int(plain[0])].transfer_leadership(ReplicaId(int(options['to'])))}")

    def do_compact(self, plain: list[str], options: dict[str, str]) -> None:
        disk = self.disks[int(plain[0])]
        index = disk.written.applied
        disk.write(lambda image: image.compact(index))
        disk.sync()
        self.nodes[int(plain[0])].compacted()

    def do_propose(self, plain: list[str], options: dict[str, str]) -> None:
        for data in plain[1:]:
            self.say(f"{plain[0]}: proposed {self.nodes[int(plain[0])].propose(data.encode())}")

    def do_change(self, plain: list[str], options: dict[str, str]) -> None:
        change = MembershipChange(
            add_voters=ids(options.get("voters", "")), add_learners=ids(options.get("learners", "")), remove=ids(options.get("remove", ""))
        )
        try:
            self.say(f"{plain[0]}: proposed {self.nodes[int(plain[0])].propose_membership(change)}")
        except ValueError as error:
            self.say(f"{plain[0]}: ValueError: {error}")

    def do_read(self, plain: list[str], options: dict[str, str]) -> None:
        self.say(f"{plain[0]}: read asked {self.nodes[int(plain[0])].read_index(plain[1].encode())}")

    def do_supported(self, plain: list[str], options: dict[str, str]) -> None:
        self.nodes[int(plain[0])].set_leader_supported(plain[1] == "yes")

    def do_barred(self, plain: list[str], options: dict[str, str]) -> None:
        self.nodes[int(plain[0])].set_votes_barred(plain[1] == "yes")

    def do_renew(self, plain: list[str], options: dict[str, str]) -> None:
        self.nodes[int(plain[0])].renew_support(ReplicaId(int(plain[1])))

    def do_unreachable(self, plain: list[str], options: dict[str, str]) -> None:
        self.nodes[int(plain[0])].report_unreachable(ReplicaId(int(plain[1])))

    def do_snapshot_failed(self, plain: list[str], options: dict[str, str]) -> None:
        self.nodes[int(plain[0])].report_snapshot(ReplicaId(int(plain[1])), ok=False)

    def do_quorum(self, plain: list[str], options: dict[str, str]) -> None:
        dead = ids(options.get("dead", ""))
        self.say(f"{plain[0]}: quorum active {self.nodes[int(plain[0])].quorum_active(lambda replica: replica not in dead)}")

    # --- time ---

    def do_turn(self, plain: list[str], options: dict[str, str]) -> None:
        for replica in [int(word) for word in plain] or list(self.nodes):
            if self.nodes[replica].has_ready:
                self.obey(replica, self.nodes[replica].ready())

    def obey(self, replica: int, ready: Ready) -> None:
        node, disk = self.nodes[replica], self.disks[replica]
        self.say_ready(replica, ready)
        if (snapshot := ready.snapshot) is not None:
            hard = ready.hard_state
            disk.write(lambda image: image.install(snapshot, [], hard))
            node.applied(snapshot.index)
        if ready.hard_state is not None or ready.entries:
            disk.write(lambda image: image.write(ready.hard_state, ready.entries))
        self.post(ready.messages)
        if ready.stable is None and not self.syncing[replica]:
            self.post(ready.messages_after_sync)
        else:
            self.syncing[replica].append((ready.stable, ready.messages_after_sync, disk.pending))
        if ready.committed:
            for entry in ready.committed:
                if entry.kind is EntryKind.CONFIG:
                    self.say(f"{replica}: now {show_membership(node.apply_membership(decode_config_entry(entry.data).change))}")
            membership = node.membership
            disk.write(lambda image: image.apply(ready.committed, membership))
            node.applied(ready.committed[-1].index)

    def do_sync(self, plain: list[str], options: dict[str, str]) -> None:
        for replica in [int(word) for word in plain] or list(self.nodes):
            while self.syncing[replica]:
                self.do_sync_one([str(replica)], {})

    def do_sync_one(self, plain: list[str], options: dict[str, str]) -> None:
        replica = int(plain[0])
        mark, messages, writes = self.syncing[replica].popleft()
        before = self.disks[replica].pending
        self.disks[replica].sync(writes)
        done = before - self.disks[replica].pending
        self.syncing[replica] = deque((m, x, max(0, w - done)) for m, x, w in self.syncing[replica])
        if mark is not None:
            self.nodes[replica].stabled(*mark)
        self.post(messages)

    def post(self, messages: tuple[Message, ...]) -> None:
        for message in messages:
            if message.to in self.nodes:
                self.links.setdefault((message.sender, message.to), []).append(message)

    def take(self, plain: list[str]) -> list[Message]:
        wanted = [(int(word.split(">")[0]), int(word.split(">")[1])) for word in plain] or sorted(self.links)
        return [message for link in wanted for message in self.links.pop(link, [])]

    def do_deliver(self, plain: list[str], options: dict[str, str]) -> None:
        for message in self.take(plain):
            if isinstance(message, InstallSnapshot):
                image, term = self.disks[message.sender].written, self.disks[message.sender].term
                metadata = SnapshotMetadata(index=image.applied, term=term(image.applied), membership=image.membership)
                message = msgspec.structs.replace(message, snapshot=metadata)
            self.nodes[message.to].step(message)

    def do_drop(self, plain: list[str], options: dict[str, str]) -> None:
        self.take(plain)

    def do_settle(self, plain: list[str], options: dict[str, str]) -> None:
        was_silent, self.is_silent = self.is_silent, True
        for _ in range(100):
            self.do_turn([], {})
            self.do_sync([], {})
            for link in [link for link in self.links if any(int(word) in link for word in plain)]:
                del self.links[link]
            self.do_deliver([], {})
            if not self.links and not any(node.has_ready for node in self.nodes.values()):
                break
        else:
            raise AssertionError("the group does not settle")
        self.is_silent = was_silent
        self.do_status([], {})

    do_settle_but = do_settle

    # --- showing ---

    def do_status(self, plain: list[str], options: dict[str, str]) -> None:
        for replica in [int(word) for word in plain] or list(self.nodes):
            s = self.nodes[replica].status()
            log = " ".join(f"{index}:{self.nodes[replica].log.term(index)}" for index in range(s.first_index, s.last_index + 1))
            self.say(
                f"{replica}: {s.role.value} term={s.term} leader={s.leader} followed={s.followed} commit={s.commit} applied={s.applied} "
                f"stable={s.stable_index} log=[{log}]{' quiet' if self.nodes[replica].is_quiet else ''}"
            )
            for p in s.progress:
                if p.replica != replica:
                    kind = " learner" if p.is_learner else ""
                    self.say(f"   → {p.replica} match={p.match} next={p.next} {p.state.value}{kind}")

    def say_ready(self, replica: int, ready: Ready) -> None:
        say = self.say
        if (change := ready.role_change) is not None:
            say(f"{replica}: becomes {change.role.value} term={change.term} leader={change.leader} followed={change.followed}")
        if ready.snapshot is not None:
            say(f"{replica}: install snapshot {ready.snapshot.index}:{ready.snapshot.term} {show_membership(ready.snapshot.membership)}")
        if (hard := ready.hard_state) is not None:
            say(f"{replica}: write term={hard.term} vote={hard.vote} commit={hard.commit}")
        if ready.entries:
            say(f"{replica}: write {show_entries(ready.entries)}")
        for message in ready.messages:
            say(f"{replica}: send {show_message(message)}")
        for message in ready.messages_after_sync:
            say(f"{replica}: after sync {show_message(message)}")
        if ready.committed:
            say(f"{replica}: apply {show_entries(ready.committed)}")
        for read in ready.read_states:
            say(f"{replica}: read {read.context.decode()} at {read.index}")


def ids(text: str) -> tuple[ReplicaId, ...]:
    return tuple(ReplicaId(int(part)) for part in text.split(",") if part)


def show_entries(entries: tuple[object, ...]) -> str:
    return " ".join(
        f"{e.index}:{e.term}" + ("(config)" if e.kind is EntryKind.CONFIG else f"({e.data.decode()})" if e.data else "")  # type: ignore[attr-defined]
        for e in entries
    )


def show_membership(membership: Membership) -> str:
    parts = [f"voters={list(membership.voters)}"]
    for name in ("voters_outgoing", "learners", "learners_next"):
        if members := getattr(membership, name):
            parts.append(f"{name}={list(members)}")
    return " ".join(parts)


def show_message(message: Message) -> str:
    head = f"→ {message.to} {type(message).__name__} term={message.term}"
    match message:
        case Append():
            entries = f" {show_entries(message.entries)}" if message.entries else ""
            return f"{head} after={message.prev_index}:{message.prev_term}{entries} commit={message.commit}"
        case AppendReply(rejected=True):
            return f"{head} rejected={message.index} hint={message.hint_index}:{message.hint_term}"
        case AppendReply():
            return f"{head} index={message.index}"
        case Heartbeat():
            return f"{head} round={message.round} commit={message.commit}"
        case HeartbeatReply():
            return f"{head} round={message.round}"
        case Vote():
            flags = f"{' pre' if message.pre else ''}{' transfer' if message.transfer else ''}"
            return f"{head} last={message.last_index}:{message.last_term}{flags}"
        case VoteReply():
            return f"{head}{' pre' if message.pre else ''} {'granted' if message.granted else 'refused'}"
        case InstallSnapshot():
            return f"{head} {message.snapshot.index}:{message.snapshot.term}"
        case TimeoutNow():
            return head


def replay(script: str) -> str:
    """Give the script with the output it really has."""
    group = Group()
    result: list[str] = []
    for block in script.strip().split("\n\n"):
        source = block.split("\n---\n")[0].removesuffix("\n---").rstrip()
        for line in source.splitlines():
            if line and not line.startswith("#"):
                group.run(line)
        result.append("\n".join([source, "---", *group.output]) if group.output else source)
        group.output.clear()
    return "\n\n".join(result) + "\n"


SCRIPTS = sorted((Path(__file__).parent / "testdata").glob("*.txt"))
