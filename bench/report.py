"""Tables of a run, for the screen and in Markdown for docs/benchmarks.md."""

from collections.abc import Sequence
from pathlib import Path

from bench.results import IdleLine, LagLine, Line, MachineLine, Ratio, SliceLine, Summary, ratios, slices, summarise
from bench.workloads import TRANSFERS

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def screen_text(lines: Sequence[SliceLine]) -> str:
    """Say the result of one workload with so many clients."""
    text = []
    for found in summarise(lines):
        text.append(f"    {found.contender:<26} {_rate(found):>16}{_details(found)}")
    text += [f"    {found.dsdb} ÷ {found.peer}: {_ratio(found)}" for found in ratios(lines)]
    text += [f"    first failure of {line.contender}: {line.error}" for line in lines if line.error][:1]
    text += [f"    {line.placement}" for line in lines[:1] if line.placement]
    text.append(f"    meanwhile: {_meanwhile(lines)}")
    return "\n".join(text)


def _details(found: Summary) -> str:
    if found.unit == "times":
        return ""
    failed = f"  {found.failures} failed" if found.failures else ""
    if found.unit == TRANSFERS:
        failed = f"  {found.attempts:.3f} attempts a commit, {found.aborts} aborted{failed}"
    return (
        f"   p50 {found.p50_ms:>9.2f} ms  p99 {found.p99_ms:>9.2f} ms   "
        f"CPU {found.cpu_us:>9.0f} µs, {found.client_cpu_us:.0f} of it the client's{failed}"
    )


def idle_text(line: IdleLine) -> str:
    """Say what a side used while idle."""
    return (
        f"    {line.contender:<26} {line.cpu_percent:>6.2f} % of a core   {line.resident_mib:.0f} MiB resident, "
        f"{line.proportional_mib:.0f} MiB with shared pages counted once, in {line.processes} processes"
    )


def markdown(lines: Sequence[Line]) -> str:
    """Give the tables of a run."""
    text = []
    for line in lines:
        if isinstance(line, MachineLine):
            sides = "; ".join(f"{name} {version}" for name, version in line.sides.items())
            text.append(
                f"{line.begun}, commit {line.commit}. {line.cores} × {line.cpu}, {line.memory_gib} GiB, Linux {line.kernel}, "
                f"{line.filesystem}, Python {line.python}. {sides}. {line.setting}.\n"
            )
    grouped = slices(lines)
    if grouped:
        text += _slice_table(grouped) + _ratio_table(grouped)
    idle = [line for line in lines if isinstance(line, IdleLine)]
    if idle:
        text += _idle_table(idle)
    for line in lines:
        if isinstance(line, LagLine):
            text += _lag_table(line)
    return "\n".join(text)


def write_page(text: str, page: Path = PAGE) -> None:
    """Put tables between the marks of docs/benchmarks.md.  Raises ValueError without marks."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def _slice_table(grouped: dict[tuple[str, int], list[SliceLine]]) -> list[str]:
    text = [
        "| workload | clients | side | rate | p50 ms | p99 ms | CPU µs a statement (client's part) | attempts | failed "
        "| other work, cores |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (workload, clients), lines in grouped.items():
        for found in summarise(lines):
            cpu = f"{found.cpu_us:,.0f} ({found.client_cpu_us:,.0f})" if found.cpu_us else ""
            attempts = f"{found.attempts:.3f}" if found.unit == TRANSFERS else ""
            text.append(
                f"| {workload} | {clients} | {found.contender} | {_rate(found)} | {found.p50_ms:,.2f} | {found.p99_ms:,.2f} | {cpu} "
                f"| {attempts} | {found.failures} | {found.elsewhere_cores:.2f} |"
            )
    return [*text, ""]


def _ratio_table(grouped: dict[tuple[str, int], list[SliceLine]]) -> list[str]:
    text = ["| workload | clients | dsdb's rate ÷ the peer's | median (lowest–highest turn) |", "| --- | ---: | --- | ---: |"]
    for (workload, clients), lines in grouped.items():
        text += [f"| {workload} | {clients} | {found.dsdb} ÷ {found.peer} | {_ratio(found)} |" for found in ratios(lines)]
    return [*text, ""]


def _idle_table(lines: Sequence[IdleLine]) -> list[str]:
    text = [
        "| idle | processes | % of a core | resident MiB | MiB, shared pages once | other work, cores |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    text += [
        f"| {line.contender}, {line.seconds:.0f} s | {line.processes} | {line.cpu_percent:.2f} | {line.resident_mib:,.0f} "
        f"| {line.proportional_mib:,.0f} | {line.elsewhere.cores + line.elsewhere.steal_cores:.2f} |"
        for line in lines
    ]
    return [*text, ""]


def _lag_table(line: LagLine) -> list[str]:
    text = ["| node | loop lag p99 ms | worst ms since its start |", "| --- | ---: | ---: |"]
    text += [f"| {node} | {p99:.1f} | {line.worst_ms[node]:.1f} |" for node, p99 in line.p99_ms.items()]
    text.append(f"| a process that only sleeps | {line.bare_p99_ms:.1f} | |")
    done = ", ".join(f"{count} × {name}" for name, count in line.statements.items())
    return [
        *text,
        "",
        f"In {line.seconds:.0f} s: {done}; {line.lease_moves} leases moved; other work {line.elsewhere.cores:.2f} cores.",
        "",
    ]


def _rate(found: Summary) -> str:
    if found.unit == "times":
        return f"{1 / found.rate:.3f} s"
    digits = 0 if found.rate >= 100 else 1
    return f"{found.rate:,.{digits}f} {'rows' if found.unit == 'rows' else ''}/s".replace(" /s", "/s")


def _ratio(found: Ratio) -> str:
    return f"{found.median:.3g} ({found.lowest:.3g}–{found.highest:.3g})"


def _meanwhile(lines: Sequence[SliceLine]) -> str:
    other = [line.elsewhere.cores for line in lines]
    steal = [line.elsewhere.steal_cores for line in lines]
    names = max(lines, key=lambda line: line.elsewhere.cores).elsewhere.names
    loads = [line.elsewhere.load_1m for line in lines]
    return (
        f"load {min(loads):.1f}–{max(loads):.1f}; others used {min(other):.2f}–{max(other):.2f} cores"
        f"{f' ({names})' if names else ''}; the host took {max(steal):.2f}"
    )
