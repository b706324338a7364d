"""A picture of a chaos run: what was done to each node, and how many transactions committed meanwhile, over the same time."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from tests.faults.verdict import FaultSpan, Pause

WIDTH, HEIGHT, LEFT, RIGHT, TOP, ROW = 1200, 220, 110, 20, 30, 18
BUCKET_S = 0.25
TICKS_MAX = 12
COLORS = {
    "kill": "#d62728",
    "kill all": "#7f0000",
    "power off": "#8c564b",
    "pause": "#9467bd",
    "isolate": "#1f77b4",
    "one-way cut": "#17becf",
    "unplug": "#393b79",
    "slow": "#e377c2",
    "drop connections": "#7f7f7f",
    "clock jump": "#bcbd22",
    "disk full": "#ff7f0e",
    "split": "#2ca02c",
    "add": "#98df8a",
    "drain": "#c5b0d5",
    "decommission": "#f7b6d2",
    "leave": "#c49c94",
    "kill for good": "#ff1493",
    "scatter": "#9edae5",
}
OTHER = "#444444"


def draw(path: Path, *, title: str, seconds: float, commits: Sequence[float], faults: Sequence[FaultSpan], longest: Pause) -> None:
    """Write the picture as SVG.  commits: when each transaction was acknowledged, in seconds from the start."""
    nodes = sorted({node for fault in faults for node in fault.nodes})
    height = TOP + HEIGHT + 26 + ROW * (len(nodes) + 1) + 30
    scale = (WIDTH - LEFT - RIGHT) / seconds
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
        *_legend(faults, height - 12),
        *_bars(faults, nodes, scale),
        f'<rect x="{LEFT + longest.began * scale:.1f}" y="{TOP}" width="{longest.seconds * scale:.1f}" height="{HEIGHT}" '
        'fill="none" stroke="#d62728" stroke-dasharray="3 3"/>',
        f'<text x="{LEFT + longest.began * scale + 3:.1f}" y="{TOP + 12}" fill="#d62728">{longest.seconds:.1f} s</text>',
        *_curve(commits, seconds, scale),
    ]
    step = next(step for step in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200) if seconds / step <= TICKS_MAX or step == 7200)
    for tick in range(0, int(seconds) + 1, step):
        at = LEFT + tick * scale
        parts.append(f'<line x1="{at:.1f}" y1="{TOP + HEIGHT}" x2="{at:.1f}" y2="{TOP + HEIGHT + 4}" stroke="black"/>')
        parts.append(f'<text x="{at:.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{tick} s</text>')
    path.write_text("\n".join([*parts, "</svg>"]))


def _legend(faults: Sequence[FaultSpan], y: int) -> list[str]:
    parts, x = [], LEFT
    for kind in sorted({fault.kind for fault in faults}):
        parts.append(f'<rect x="{x}" y="{y - 9}" width="9" height="9" fill="{COLORS.get(kind, OTHER)}"/>')
        parts.append(f'<text x="{x + 12}" y="{y}" font-size="11">{escape(kind)}</text>')
        x += 26 + 6 * len(kind)
    return parts


def _bars(faults: Sequence[FaultSpan], nodes: Sequence[int], scale: float) -> list[str]:
    """A row for each node, where nothing can overlap, and one for what is done to all."""
    top = TOP + HEIGHT + 26
    parts = [f'<text x="4" y="{top + ROW * row + 11}">node {node}</text>' for row, node in enumerate(nodes)]
    parts.append(f'<text x="4" y="{top + ROW * len(nodes) + 11}">all</text>')
    for fault in faults:
        color = COLORS.get(fault.kind, OTHER)
        left, width = LEFT + fault.began * scale, max((fault.ended - fault.began) * scale, 2.0)
        parts.append(f'<rect x="{left:.1f}" y="{TOP}" width="{width:.1f}" height="{HEIGHT}" fill="{color}" opacity="0.12"/>')
        for row in [nodes.index(node) for node in fault.nodes] or [len(nodes)]:
            y = top + ROW * row
            label = escape(str(fault))
            parts.append(f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="14" fill="{color}"><title>{label}</title></rect>')
            if width > 6 * len(fault.kind):
                parts.append(f'<text x="{left + 2:.1f}" y="{y + 11}" fill="white" font-size="10">{escape(fault.kind)}</text>')
    return parts


def _curve(commits: Sequence[float], seconds: float, scale: float) -> list[str]:
    """Commits a second, as steps: each as wide as the time in which they are counted."""
    buckets = [0] * (int(seconds / BUCKET_S) + 1)
    for moment in commits:
        if 0 <= moment <= seconds:
            buckets[int(moment / BUCKET_S)] += 1
    most = max(buckets) or 1
    base = TOP + HEIGHT
    points = []
    for at, count in enumerate(buckets):
        y = TOP + HEIGHT * (1 - count / most)
        for edge in (at, at + 1):
            points.append(f"{LEFT + min(edge * BUCKET_S, seconds) * scale:.1f},{y:.1f}")
    return [
        f'<text x="{LEFT - 6}" y="{TOP + 10}" text-anchor="end">{most / BUCKET_S:,.0f}/s</text>',
        f'<text x="{LEFT - 6}" y="{base}" text-anchor="end">0</text>',
        f'<text x="{LEFT - 6}" y="{TOP + HEIGHT // 2}" text-anchor="end">commits</text>',
        f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}" stroke="black"/>',
        f'<polyline points="{" ".join(points)}" fill="none" stroke="black" stroke-width="1.2"/>',
    ]
