"""Peak memory of this process."""

from pathlib import Path


def resident_peak() -> int:
    """Peak of resident memory in bytes; `getrusage` would count that of the process that started this one, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
