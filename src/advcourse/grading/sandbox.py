"""What a process gives up before it runs somebody else's code."""

import ctypes
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..contract import check_number

CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1
LARGEST_FILE = 256 * 2**20


@dataclass(frozen=True)
class Limits:
    """What a submission may take.

    Attributes:
        seconds: for one cell, and for the tests of one part, by the clock.
        memory: bytes that the process may write to.

    Raises:
        ValueError: if a limit is not positive.
    """

    seconds: float = 60.0
    memory: int = 4 * 2**30

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds, 0.1)
        check_number("memory", self.memory, 2**20)


def confine(home: Path, limits: Limits) -> list[str]:
    """Give up, for good and for all child processes: memory beyond the limit, the network, the sight of other
    processes, and every file but those
    that Python, the libraries and this package consist of, which can be read, and those in `home`.

    A user without privileges can do so on Linux, where the kernel lets them (user namespaces, Landlock).

    Args:
        home: an empty folder, which becomes the working directory.
        limits: see there.

    Returns:
        What this system did not let us give up, in words; nothing if all went well.
    """
    refused = []
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (limits.memory, limits.memory))
    except (OSError, ValueError):
        refused.append("memory is not limited")
    try:
        _leave_company()
    except (OSError, AttributeError):
        refused.append("the network can be reached, and this user's processes can be killed")
    os.environ |= {"HOME": str(home), "TMPDIR": str(home), "MPLCONFIGDIR": str(home), "MPLBACKEND": "Agg"}
    os.chdir(home)
    try:
        _leave_files(home)
    except (ImportError, OSError):
        refused.append("all files of this user can be read and written")
    return refused


def _leave_company() -> None:
    """Into namespaces without network devices and without other processes; that takes a user namespace, in which one
    stays who one is. Only a child is in the new process namespace: the caller waits for it here, and ends with it."""
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "unshare")
    with suppress(OSError):  # without a name in the namespace one is nobody, which only looks odd
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    if child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # and all its children with it, as it is the first of its namespace


def _leave_files(home: Path) -> None:
    from landlock import FSAccess, Ruleset

    rules = Ruleset()
    read = FSAccess.READ_FILE | FSAccess.READ_DIR | FSAccess.EXECUTE
    rules.allow(*(path for path in _needed() if path.exists()), rules=read)
    rules.allow("/dev/null", "/dev/urandom", rules=FSAccess.READ_FILE | FSAccess.WRITE_FILE)
    rules.allow(home)
    rules.apply()


def _needed() -> Iterator[Path]:
    """Where Python, its libraries and this package are, and what the system's libraries look at."""
    yield Path(__file__).parents[1]
    yield from (Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    yield from (Path(sys.base_prefix) / name for name in ("bin", "lib"))
    yield from map(Path, ("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys/devices/system/cpu"))
