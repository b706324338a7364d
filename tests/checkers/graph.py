"""Graphs of numbered nodes: strongly connected components, topological orders and shortest walks.

The components are Tarjan's ("Depth-first search and linear graph algorithms", SIAM J. Comput. 1972), without recursion, as a history has
tens of thousands of transactions in a row.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence


def components(out: Sequence[Iterable[int]]) -> list[list[int]]:
    """Give the strongly connected components of two nodes and more, each in ascending order."""
    count = len(out)
    index = [0] * count  # order of discovery from 1; 0: not yet found
    low = [0] * count
    is_open = bytearray(count)
    stack: list[int] = []
    found: list[list[int]] = []
    discovered = 0
    for root in range(count):
        if index[root]:
            continue
        discovered += 1
        index[root] = low[root] = discovered
        stack.append(root)
        is_open[root] = True
        work = [(root, iter(out[root]))]
        while work:
            node, targets = work[-1]
            for target in targets:
                if not index[target]:
                    discovered += 1
                    index[target] = low[target] = discovered
                    stack.append(target)
                    is_open[target] = True
                    work.append((target, iter(out[target])))
                    break
                if is_open[target] and index[target] < low[node]:
                    low[node] = index[target]
            else:
                work.pop()
                if work and low[node] < low[work[-1][0]]:
                    low[work[-1][0]] = low[node]
                if low[node] == index[node]:
                    at = len(stack) - 1
                    while stack[at] != node:
                        at -= 1
                    component = stack[at:]
                    del stack[at:]
                    for member in component:
                        is_open[member] = False
                    if len(component) > 1:
                        found.append(sorted(component))
    return found


def topological(out: Sequence[Iterable[int]], priority: Sequence[int]) -> list[int]:
    """Give each node's position in an order that all edges follow, of those that could come next the lowest priority first.

    The graph has no cycle.
    """
    incoming = [0] * len(out)
    for targets in out:
        for target in targets:
            incoming[target] += 1
    ready = [(priority[node], node) for node in range(len(out)) if not incoming[node]]
    heapq.heapify(ready)
    positions = [0] * len(out)
    placed = 0
    while ready:
        _, node = heapq.heappop(ready)
        positions[node] = placed
        placed += 1
        for target in out[node]:
            incoming[target] -= 1
            if not incoming[target]:
                heapq.heappush(ready, (priority[target], target))
    assert placed == len(out), "the graph has a cycle"
    return positions


def shortest_walk(start: int, goal: int, successors: Callable[[int], Iterable[int]], length_max: int | None = None) -> list[int] | None:
    """Give the nodes of a shortest walk of one to `length_max` steps, both ends included (start may be goal), or None."""
    parents: dict[int, int] = {}
    waiting = deque([(start, 0)])
    while waiting:
        node, length = waiting.popleft()
        if length_max is not None and length >= length_max:
            return None
        for target in successors(node):
            if target == goal:
                walk = [goal, node]
                while walk[-1] != start:
                    walk.append(parents[walk[-1]])
                return walk[::-1]
            if target not in parents and target != start:
                parents[target] = node
                waiting.append((target, length + 1))
    return None
