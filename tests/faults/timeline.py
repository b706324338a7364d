"""A picture of a chaos run: what was done to the cluster, and how many transactions committed meanwhile, over the same time."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import msgspec

WIDTH, HEIGHT, LEFT, ROW = 1200, 220, 140, 18
BUCKET_S = 0.25
COLORS = {
    "kill": "#d62728",
    "pause": "#9467bd",
    "isolate": "#1f77b4",
    "one-way cut": "#17becf",
    "drop connections": "#7f7f7f",
    "clock jump": "#bcbd22",
    "disk full": "#ff7f0e",
    "split": "#2ca02c",
}


class FaultSpan(msgspec.Struct, frozen=True):
    """A fault: its kind, what it was done to, and from when to when, in seconds from the start of the run."""

    kind: str
    target: str
    began: float
    ended: float


def draw(path: Path, *, title: str, seconds: float, commits: Sequence[float], faults: Sequence[FaultSpan]) -> None:
    """Write the picture as SVG.  commits: when each transaction was acknowledged, in seconds from the start."""
    buckets = [0] * (int(seconds / BUCKET_S) + 1)
    for moment in commits:
        if 0 <= moment <= seconds:
            buckets[int(moment / BUCKET_S)] += 1
    most = max(buckets, default=0) or 1
    kinds = sorted({fault.kind for fault in faults})
    height = HEIGHT + 40 + ROW * len(kinds) + 30

    def x(moment: float) -> float:
        return LEFT + (WIDTH - LEFT - 20) * min(max(moment / seconds, 0.0), 1.0)

    points = " ".join(f"{x(at * BUCKET_S):.1f},{30 + HEIGHT * (1 - count / most):.1f}" for at, count in enumerate(buckets))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
        f'<text x="4" y="40">{most / BUCKET_S:,.0f} commits/s</text><text x="4" y="{30 + HEIGHT}">0</text>',
        f'<line x1="{LEFT}" y1="{30 + HEIGHT}" x2="{WIDTH - 20}" y2="{30 + HEIGHT}" stroke="black"/>',
    ]
    for row, kind in enumerate(kinds):
        y = HEIGHT + 44 + ROW * row
        color = COLORS.get(kind, "#444444")
        parts.append(f'<text x="4" y="{y + 11}" fill="{color}">{escape(kind)}</text>')
        for fault in faults:
            if fault.kind == kind:
                left, right = x(fault.began), x(fault.ended)
                width = max(right - left, 2.0)
                parts.append(f'<rect x="{left:.1f}" y="30" width="{width:.1f}" height="{HEIGHT}" fill="{color}" opacity="0.12"/>')
                label = f"{fault.kind} {fault.target}: {fault.began:.1f} to {fault.ended:.1f} s"
                parts.append(
                    f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="13" fill="{color}"><title>{escape(label)}</title></rect>'
                )
                parts.append(f'<text x="{left + 2:.1f}" y="{y + 11}" fill="white" font-size="10">{escape(fault.target)}</text>')
    parts.append(f'<polyline points="{points}" fill="none" stroke="black" stroke-width="1.2"/>')
    for tick in range(0, int(seconds) + 1, max(1, int(seconds / 12))):
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 10}" text-anchor="middle">{tick} s</text>')
    parts.append("</svg>")
    path.write_text("\n".join(parts))
