"""What a server's processes cost, from the kernel: processor seconds, memory shared and private. Linux only."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
MEMORY = {"pss": ("Pss",), "private": ("Private_Clean", "Private_Dirty"), "rss": ("Rss",)}


@dataclass(frozen=True)
class CpuTimes:
    """Processor seconds by process id since each was started."""

    seconds: Mapping[int, float]

    def since(self, before: "CpuTimes") -> float:
        """Returns the seconds used since an earlier look.

        Args:
            before: the earlier look.

        Returns:
            Seconds of all processes; one that is new counts whole, one that is gone not at all.
        """
        return sum(used - before.seconds.get(pid, 0.0) for pid, used in self.seconds.items())

    def shares(self, before: "CpuTimes") -> list[float]:
        """Returns how the seconds fell on the processes.

        Args:
            before: the earlier look.

        Returns:
            Seconds of each process that did anything, most first.
        """
        used = (now - before.seconds.get(pid, 0.0) for pid, now in self.seconds.items())
        return sorted((round(value, 3) for value in used if value > 0), reverse=True)


def process_tree(pid: int, proc: Path = PROC) -> list[int]:
    """Returns a process and all its descendants.

    Args:
        pid: its id.
        proc: the kernel's folder.

    Returns:
        Process ids, ascending.
    """
    children: dict[int, list[int]] = {}
    for folder in proc.iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name), proc)):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, looking = [], [pid]
    while looking:
        one = looking.pop()
        found.append(one)
        looking += children.get(one, [])
    return sorted(found)


def cpu_times(pids: Iterable[int], proc: Path = PROC) -> CpuTimes:
    """Returns what processes have used so far, in user and kernel mode, all threads.

    Args:
        pids: process ids; those that are gone are left out.
        proc: the kernel's folder.

    Returns:
        Processor seconds, in ticks of 10 ms.
    """
    fields = {pid: _stat(pid, proc) for pid in pids}
    return CpuTimes({pid: (int(found[11]) + int(found[12])) / TICKS for pid, found in fields.items() if found})


def memory_mib(pids: Iterable[int], proc: Path = PROC) -> dict[str, float]:
    """Returns the memory of all the processes together.

    Pages of files count where they are mapped; what only lies in the system's cache does not.

    Args:
        pids: process ids; those that are gone are left out.
        proc: the kernel's folder.

    Returns:
        MiB: pss (shared pages divided), private (theirs alone), rss.
    """
    sizes = [memory_bytes(pid, proc) for pid in pids]
    return {name: round(sum(size[name] for size in sizes) / 2**20, 1) for name in MEMORY}


def memory_bytes(pid: int, proc: Path = PROC) -> dict[str, int]:
    """Returns the memory of one process.

    Args:
        pid: its id.
        proc: the kernel's folder.

    Returns:
        Bytes: pss, private, rss; 0 for a process that is gone.
    """
    try:
        lines = (proc / str(pid) / "smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:])}
    return {name: 1024 * sum(kib.get(part, 0) for part in parts) for name, parts in MEMORY.items()}


def _stat(pid: int, proc: Path) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second, a name in brackets, may hold anything."""
    try:
        text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
