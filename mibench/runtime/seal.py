"""Shut this process in, as far as Linux lets one do so without rights: namespaces, then Landlock.

To be called first of all, before anything that starts a thread is imported: a new user namespace is for a process of
one thread, and Landlock binds the calling thread and what comes after it.

References:
    | Landlock: unprivileged access control, https://docs.kernel.org/userspace-api/landlock.html
    | user_namespaces(7), mount_namespaces(7), pid_namespaces(7), https://man7.org/linux/man-pages/man7/namespaces.7.html
    | pivot_root(2), https://man7.org/linux/man-pages/man2/pivot_root.2.html
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["seal", "unreadable_by_others"]

_UNSHARE = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000
"""CLONE_NEWUSER, NEWNS, NEWPID, NEWNET, NEWIPC, NEWUTS."""

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446

_READONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_NOSUID, _NODEV, _RELATIME, _DETACH = 2, 4, 1 << 21, 2

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_READING = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
OF_THE_SYSTEM = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system")


def seal(readable: Sequence[str], home: str, devices: Sequence[str] = ()) -> list[str]:
    """Give up whatever is not needed; from here on only `readable` can be read and only `home` be written.

    In new namespaces the process sees a file system of these folders alone, no other process and no network. Landlock
    says the same once more, and forbids to look into or signal processes outside. Where neither is to be had, what is
    left is that this is another process with nothing but its pipes.

    With namespaces the caller goes on as a child of this process, which waits for it and ends as it does.

    Args:
        readable: Files and folders.
        home: The folder to write in.
        devices: Device files of an accelerator.

    Returns:
        What holds, of `landlock` and `namespaces`.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    paths = [path for path in readable if os.path.exists(path)]
    tools = [path for path in (*DEVICES, *devices) if os.path.exists(path)]
    held = ["namespaces"] if _namespaces(libc, paths, home, tools) else []
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # In a file system of its own everything that is there may be listed: the folders above what was brought in.
    if _landlock(libc, [*paths, "/proc/self", *OF_THE_SYSTEM], home, tools, ["/"] if held else []):
        held.insert(0, "landlock")
    _drop_capabilities(libc)
    os.chdir(home)
    return held


def unreadable_by_others(closed: bool) -> None:
    """Whether other processes of this user are kept out of this one's memory and environment (Linux alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0 if closed else 1, 0, 0, 0)


# --- namespaces -----------------------------------------------------------------------------------------------------


def _namespaces(libc: ctypes.CDLL, paths: Sequence[str], home: str, tools: Sequence[str]) -> bool:
    """A file system of these paths, no other process, no network; False where that is not allowed."""
    pivot = _PIVOT_ROOT.get(platform.machine())
    user, group = os.getuid(), os.getgid()
    if pivot is None or _may_not(libc):
        return False
    _must(libc.unshare(_UNSHARE))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _become_child(libc)
    root = f"{home}.root"
    _mount(libc, None, "/", None, _RECURSIVE | _PRIVATE)
    _mount(libc, "tmpfs", root, "tmpfs", _NOSUID | _NODEV)
    for path in sorted({*paths, *OF_THE_SYSTEM, home, *tools}, key=lambda path: (path.count("/"), path)):
        if path.startswith("/proc") or not os.path.exists(path):
            continue
        _show(libc, path, root + path, path == home or path in tools)
    for folder in ("/proc", "/dev/shm", "/tmp"):
        os.makedirs(root + folder, exist_ok=True)
    with suppress(OSError):  # where parts of /proc are masked (containers) a new one is refused; there is then none
        _mount(libc, "proc", f"{root}/proc", "proc", _NOSUID | _NODEV)
    _mount(libc, "tmpfs", f"{root}/dev/shm", "tmpfs", _NOSUID | _NODEV)
    os.chdir(root)
    _must(libc.syscall(pivot, b".", b"."))
    _must(libc.umount2(b".", _DETACH))
    return True


def _may_not(libc: ctypes.CDLL) -> bool:
    """Try in a child of its own, because half of a way cannot be gone back: what unshare gives, mount may refuse."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            _must(libc.unshare(_UNSHARE))
            _mount(libc, None, "/", None, _RECURSIVE | _PRIVATE)
            _mount(libc, "tmpfs", "/tmp", "tmpfs", 0)
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1] != 0


def _become_child(libc: ctypes.CDLL) -> None:
    """Go on as the first process of the new namespace; this one waits, and ends as the other did."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _show(libc: ctypes.CDLL, path: str, place: str, writable: bool) -> None:
    """The same path in the new file system, read-only unless it is to be written."""
    if os.path.isdir(path):
        os.makedirs(place, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        Path(place).touch()
    _mount(libc, path, place, None, _BIND | _RECURSIVE)
    if not writable:
        flags = os.statvfs(path).f_flag  # those that the path has already may not be taken from it
        kept = flags & 0xE | flags & 0xC00 | (_RELATIME if flags & 4096 else 0)
        _mount(libc, None, place, None, _BIND | _REMOUNT | _READONLY | kept)


def _mount(libc: ctypes.CDLL, source: str | None, place: str, kind: str | None, flags: int) -> None:
    names = [None if one is None else one.encode() for one in (source, place, kind)]
    _must(libc.mount(*names, ctypes.c_ulong(flags), None))


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Those that a user namespace gives, or that root has; `no_new_privs` keeps them from coming back."""
    numbers = {"x86_64": 126, "aarch64": 91}
    if platform.machine() in numbers:
        header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
        libc.syscall(numbers[platform.machine()], header, nothing)


def _must(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# --- Landlock -------------------------------------------------------------------------------------------------------


def _landlock(libc: ctypes.CDLL, paths: Sequence[str], home: str, tools: Sequence[str], listed: Sequence[str]) -> bool:
    """Allow reading the paths, everything in the home, using the devices and listing some folders; False where the
    kernel has no Landlock."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    # Every right that this version knows is taken, of files, TCP (from 4), signals and abstract sockets (from 6).
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    attributes = struct.pack("QQQ", rights, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    allowed = dict.fromkeys(listed, _READ_DIR) | dict.fromkeys(paths, _READING)
    allowed |= dict.fromkeys(tools, _READ_FILE | _WRITE_FILE | _IOCTL) | {home: rights}
    for path, access in allowed.items():
        with suppress(FileNotFoundError, PermissionError):
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            access &= rights if os.path.isdir(path) else rights & _OF_FILES
            _must(libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", access, handle), 0))
            os.close(handle)
    _must(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)
    return True
