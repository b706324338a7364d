"""Clusters in words, for golden scripts: stores, ranges and placements as lines of text, and the view that they describe.

store 4 node 4 region=eu,zone=b dead decommissioning 100GiB
range 7 on 1* 2 3 4(learner) table=5 size=64MiB load=200 changing
placement 5 replicas=5 constraints=region=eu,-zone=c prefer=zone=a      (placement 0: of the cluster)
range 8 on 1* from=4 to=7                                       (all keys of tables 4 to 6; to=end: of those behind, too)
range 10..99 on 1* 2 3
moved 7 to 2 load=0                  (its lease, since)
settled 7 load=0                     (its new leaseholder has had time to measure its load)
underway range 7: …                  (as a plan prints its moves)
"""

import re
from collections.abc import Iterable

import msgspec

from dsdb.coordinator.moves import ChangeReplicas, Move, Target, TransferLease
from dsdb.coordinator.placement import Locality, PlacementBook
from dsdb.coordinator.view import ClusterView, NodeState, RangeView, StoreState, StoreView
from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor, ReplicaKind
from dsdb.kv.ids import SYSTEM_RANGE, NodeId, RangeId, StoreId
from dsdb.raft.messages import ReplicaId
from dsdb.sql.constraints import read_constraints
from dsdb.storage.keys import KEY_MAX, KEY_MIN, SYSTEM_END, Span, index_prefix, table_prefix
from dsdb.store.range_settings import StoredSettings

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
KINDS = {"learner": ReplicaKind.LEARNER, "incoming": ReplicaKind.VOTER_INCOMING, "outgoing": ReplicaKind.VOTER_OUTGOING}


def locality(text: str) -> Locality:
    return tuple((part.partition("=")[0], part.partition("=")[2]) for part in text.split(",") if part)


def size(text: str) -> int:
    number, unit = text[:-3], text[-3:]
    return int(number) * UNITS[unit]


def parse(lines: Iterable[str]) -> tuple[ClusterView, list[Move]]:
    view, underway = ClusterView(), []
    placements: dict[int, StoredSettings] = {}
    for line in lines:
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        match words[0]:
            case "store":
                view.put_store(_store(words))
            case "range":
                for found in _ranges(words, view):
                    view.put_range(found)
            case "placement":
                options = dict(word.partition("=")[::2] for word in words[2:])
                placements[int(words[1])] = StoredSettings(
                    database_id=1,
                    replicas=int(options["replicas"]) if "replicas" in options else None,
                    constraints=read_constraints("constraints", options["constraints"]) if "constraints" in options else None,
                    lease_preference=read_constraints("prefer", options["prefer"]) if "prefer" in options else None,
                )
            case "moved":
                found = view.ranges[RangeId(int(words[1]))]
                more = {"leaseholder": StoreId(int(words[3])), "lease_term": found.lease_term + 1, "requests_per_s": float(words[4][5:])}
                view.put_range(msgspec.structs.replace(found, **more))
            case "settled":
                found = view.ranges[RangeId(int(words[1]))]
                view.settle(found.desc.range_id)
                view.put_range(msgspec.structs.replace(found, requests_per_s=float(words[2][5:])))
            case "underway":
                underway.append(_move(line, view))
            case other:
                raise ValueError(f"what is {other}?")
    view.set_placements(PlacementBook(placements))
    return view, underway


def _store(words: list[str]) -> StoreView:
    found = StoreView(store_id=StoreId(int(words[1])), node_id=NodeId(int(words[1])))
    more: dict[str, object] = {}
    rest = words[2:]
    while rest:
        word = rest.pop(0)
        if word == "node":
            more["node_id"] = NodeId(int(rest.pop(0)))
        elif "=" in word:
            more["locality"] = locality(word)
        elif word in {state.value for state in StoreState}:
            more["state"] = StoreState(word)
        elif word in {state.value for state in NodeState}:
            more["node_state"] = NodeState(word)
        else:
            more["capacity_bytes"] = size(word)
    fields = {name: getattr(found, name) for name in found.__struct_fields__}
    return StoreView(**{**fields, **more})


def _ranges(words: list[str], view: ClusterView) -> Iterable[RangeView]:
    first, _, last = words[1].partition("..")
    members, leaseholder, more = [], None, {}
    for word in words[3:]:
        if found := re.fullmatch(r"(\d+)(\*?)(?:\((\w+)\))?", word):
            store_id = StoreId(int(found[1]))
            leaseholder = store_id if found[2] else leaseholder
            members.append((store_id, KINDS[found[3]] if found[3] else ReplicaKind.VOTER))
        else:
            more[word.partition("=")[0]] = word.partition("=")[2]
    for number in range(int(first), int(last or first) + 1):
        yield _range(number, members, leaseholder, more, view)


def _range(
    number: int, members: list[tuple[StoreId, ReplicaKind]], leaseholder: StoreId | None, more: dict[str, str], view: ClusterView
) -> RangeView:
    replicas = tuple(
        ReplicaDescriptor(ReplicaId(at), view.stores[store_id].node_id if store_id in view.stores else NodeId(store_id), store_id, kind)
        for at, (store_id, kind) in enumerate(members, 1)
    )
    start, end = _span(number, more)
    return RangeView(
        desc=RangeDescriptor(RangeId(number), start, end, 1, replicas, ReplicaId(len(members) + 1)),
        leaseholder=leaseholder,
        lease_term=6,
        is_changing="changing" in more,
        size_bytes=size(more["size"]) if "size" in more else 0,
        requests_per_s=float(more.get("load", 0)),
    )


def _span(number: int, more: dict[str, str]) -> Span:
    if number == SYSTEM_RANGE:
        return Span(KEY_MIN, SYSTEM_END)
    if "from" in more:
        return Span(table_prefix(1, int(more["from"])), KEY_MAX if more["to"] == "end" else table_prefix(1, int(more["to"])))
    prefix = index_prefix(1, int(more["table"]), number) if "table" in more else table_prefix(2, number)
    return Span(prefix, prefix + b"\xff")


def _move(line: str, view: ClusterView) -> Move:
    found = re.match(r"underway range (\d+): (?:lease (\d+) to (\d+))?(?:add ([\d, ]+))?(?:; )?(?:remove ([\d, ]+))?", line)
    assert found is not None, line
    ranged = view.ranges[RangeId(int(found[1]))]
    assert ranged.leaseholder is not None
    if found[2]:
        return TransferLease(desc=ranged.desc, leaseholder=StoreId(int(found[2])), to=StoreId(int(found[3])), reason="")
    add = tuple(Target(StoreId(int(number)), NodeId(int(number))) for number in (found[4] or "").split(",") if number.strip())
    remove = tuple(StoreId(int(number)) for number in (found[5] or "").split(",") if number.strip())
    return ChangeReplicas(desc=ranged.desc, leaseholder=ranged.leaseholder, add=add, remove=remove, reason="")
