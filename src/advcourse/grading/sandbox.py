"""What a process gives up before it runs somebody else's code."""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..contract import check_number

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
# Numbers of the system calls socket and io_uring_setup, behind the name of the architecture in a filter.
SOCKET_CALLS = {"x86_64": (0xC000003E, 41, 425), "aarch64": (0xC00000B7, 198, 425)}
DISK = 512 * 2**20


@dataclass(frozen=True)
class Limits:
    """What a submission may take.

    Attributes:
        seconds: for one cell, and for one call of a function, by the clock.
        memory: bytes that a process may take beyond what Python and the libraries take.
        total: seconds for all of the submission.

    Raises:
        ValueError: if a limit is not positive.
    """

    seconds: float = 60.0
    memory: int = 4 * 2**30
    total: float = 900.0

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds, 0.1)
        check_number("memory", self.memory, 2**20)
        check_number("total", self.total, 0.1)


def confine(home: Path, limits: Limits) -> list[str]:
    """Give up, for good and for all child processes: memory beyond the limit, the network and all sockets, the sight of
    other processes, and every file but those that Python, the libraries and this package consist of, which can be read,
    and those in `home`, which are in memory and few.

    A user without privileges can do so on Linux, where the kernel lets them (namespaces, seccomp, Landlock).

    Args:
        home: an empty folder, which becomes the working directory.
        limits: see there.

    Returns:
        What this system did not let us give up, in words; nothing if all went well.
    """
    refused = []
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + limits.memory, taken + limits.memory))
    except (OSError, ValueError):
        refused.append("memory can be taken without limit")
    try:
        _leave_company(home)
    except (OSError, AttributeError):
        refused.append("processes of this user can be ended, and disks can be filled")
    os.environ |= {"HOME": str(home), "TMPDIR": str(home), "MPLCONFIGDIR": str(home), "MPLBACKEND": "Agg"}
    os.chdir(home)
    try:
        _leave_files(home)
    except (ImportError, OSError):
        refused.append("files of this user can be read and written")
    try:
        _leave_sockets()
    except (OSError, AttributeError, KeyError):
        refused.append("the network can be reached")
    return refused


def _leave_company(home: Path) -> None:
    """Into namespaces without network devices and without other processes, in which `home` is a small file system in
    memory. It takes a user namespace, in which one stays who one is. Only a child is in the new process namespace: the
    caller waits for it here, ends with it, and ends it when asked to."""
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    with suppress(OSError):  # without a name in the namespace one is nobody, which only looks odd
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    if libc.mount(b"tmpfs", str(home).encode(), b"tmpfs", 0, f"size={DISK}".encode()):
        raise OSError(ctypes.get_errno(), "mount")
    if child := os.fork():
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))  # and all its children with it
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _leave_files(home: Path) -> None:
    from landlock import FSAccess, Ruleset

    rules = Ruleset()
    file = FSAccess.READ_FILE | FSAccess.EXECUTE
    for path in filter(Path.exists, _needed()):
        rules.allow(path, rules=file | FSAccess.READ_DIR if path.is_dir() else file)
    rules.allow("/dev/null", rules=FSAccess.READ_FILE | FSAccess.WRITE_FILE)
    rules.allow(home)
    rules.apply()


def _needed() -> Iterator[Path]:
    """Where Python, its libraries and this package are, and what the system's libraries look at."""
    yield Path(__file__).parents[1]
    yield from (Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    yield from (Path(sys.base_prefix) / name for name in ("bin", "lib"))
    yield from map(Path, ("/usr", "/lib", "/lib64", "/dev/urandom", "/sys/devices/system/cpu"))
    yield from (Path("/etc") / name for name in ("ld.so.cache", "localtime", "passwd", "fonts"))
    yield from (Path("/proc") / name for name in ("self", "cpuinfo", "meminfo", "stat"))


def _leave_sockets() -> None:
    """No new socket, of any kind: a socket in a file reaches what neither a namespace nor Landlock keeps away, such as
    the process that this one was forked from."""
    architecture, *calls = SOCKET_CALLS[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06  # of a filter in BPF, and how far to jump if so and if not
    allow, deny = 0x7FFF0000, 0x00050000 | 13  # EACCES
    steps = [
        (load, 0, 0, 4),  # the architecture
        (equal, 0, len(calls) + 3, architecture),
        (load, 0, 0, 0),  # the number of the call
        (at_least, len(calls) + 1, 0, 0x40000000),  # of another table
        *((equal, len(calls) - k, 0, call) for k, call in enumerate(calls)),
        (answer, 0, 0, allow),
        (answer, 0, 0, deny),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")
