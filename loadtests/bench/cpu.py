"""CPU time and memory of a process tree, read from /proc.

schedstat's first field is the run time of a thread in nanoseconds, kept by the scheduler at every switch: it is finer
than the clock ticks of /proc/<pid>/stat and leaves out the time that a thread waited for a core.
It does not know threads that have ended, so a thread that ends between two readings is reported, not hidden.
"""

from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class CpuReading:
    """Run time so far, per thread."""

    run_ns: dict[tuple[int, int], int]  # (process id, thread id) → nanoseconds


def read_cpu(root_pid: int) -> CpuReading:
    """The tree under `root_pid`, itself included."""
    run_ns = {}
    for pid in tree(root_pid):
        for task in (PROC / str(pid) / "task").glob("*"):
            try:
                run_ns[pid, int(task.name)] = int((task / "schedstat").read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended since the listing
    return CpuReading(run_ns=run_ns)


def spent_s(before: CpuReading, after: CpuReading) -> float:
    """CPU seconds between two readings; threads that appeared since count in full."""
    return sum(ns - before.run_ns.get(thread, 0) for thread, ns in after.run_ns.items()) / 1e9


def threads_lost(before: CpuReading, after: CpuReading) -> int:
    """Threads whose run time is missing in the second reading: `spent_s` is then too low."""
    return len(before.run_ns.keys() - after.run_ns.keys())


def resident_mib(root_pid: int) -> float:
    """VmRSS of the tree in MiB. Pages shared by several processes count once for each."""
    kib = 0
    for pid in tree(root_pid):
        try:
            status = (PROC / str(pid) / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        kib += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    return kib / 1024


def tree(root_pid: int) -> list[int]:
    """`root_pid` and its descendants that are alive."""
    children: dict[int, list[int]] = {}
    for stat in PROC.glob("[0-9]*/stat"):
        try:
            # The command name stands in parentheses and may hold anything: fields count from the last one.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root_pid]
    for pid in found:
        found += children.get(pid, [])
    return found
