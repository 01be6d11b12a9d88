"""Confines the processes that open strangers' files, and hides the bot's own memory from them; Linux only.

`confined` puts this file, run as a program, before a command. It gives up the network and the view of other processes
for itself, and becomes the command: all that the command starts inherits this. No right of the user is needed, and
neither Docker nor the hardened unit of systemd forbids it.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

IS_LINUX = sys.platform == "linux"

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 22, 24, 38
#: Capabilities are numbered up to this; those over files are the first four (linux/capability.h).
_CAPABILITIES, _FILE_CAPABILITIES = 64, 4
_SECCOMP_MODE_FILTER = 2

#: `AUDIT_ARCH_*` and system calls by `os.uname().machine` (linux/audit.h, asm/unistd.h).
_ARCHITECTURES = {
    "x86_64": (0xC000003E, {"socket": 41, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311}),
    "aarch64": (0xC00000B7, {"socket": 198, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271}),
}
#: The same on both. io_uring makes sockets without the system call, pidfd_getfd takes those of other processes.
_IO_URING_SETUP, _PIDFD_GETFD = 425, 438
#: x86-64 has a second table of system calls from this number on.
_X32_BIT = 0x40000000
_AF_UNIX = 1
#: Classic BPF (linux/bpf_common.h): load a word of `seccomp_data`, jump, return.
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_AT_NUMBER, _AT_ARCHITECTURE, _AT_FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 13  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EACCES

#: linux/landlock.h; the system calls have these numbers everywhere.
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION, _LANDLOCK_PATH_BENEATH = 1, 1
_MAKE_BLOCK_DEVICE, _MOVE_BETWEEN_FOLDERS = 1 << 11, 1 << 13
#: Abstract UNIX sockets and signals stay within the domain, from ABI 6 on.
_SCOPES = 0b11


class Barrier(StrEnum):
    """What a confined process cannot reach."""

    NETWORK = "network"
    #: Memory and environment of other processes of the same user.
    PROCESSES = "processes"


def confined(argv: Sequence[str]) -> list[str]:
    """Return a command that confines itself and then becomes `argv`; `argv` itself where there is no way to."""
    return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), *argv] if IS_LINUX else list(argv)


def hide_memory() -> None:
    """Hide this process's environment and memory in /proc from other processes of its user, and write no core dumps.

    `/proc/PID/environ` shows the environment that a process was started with, the token included, whatever it has
    deleted from `os.environ` since.
    """
    if IS_LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def confine() -> list[Barrier]:
    """Confine this process for good, as far as the kernel can, and return what is out of its reach."""
    if not IS_LINUX:
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    # Of a bot that runs as root: what follows would not hold for it. For other users there is nothing to drop.
    for capability in range(_FILE_CAPABILITIES, _CAPABILITIES):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    # Both need it: no program started from here can gain rights.
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return []
    barriers = [Barrier.PROCESSES] if _restrict_processes(libc) else []
    return [*([Barrier.NETWORK] if _refuse_sockets(libc) else []), *barriers]


def _refuse_sockets(libc: ctypes.CDLL) -> bool:
    """Let the kernel refuse every socket but UNIX ones, and the calls that reach into other processes (seccomp)."""
    if (known := _ARCHITECTURES.get(os.uname().machine)) is None or sys.byteorder != "little":
        return False
    program = _socket_filter(*known)
    length = len(program) // 8
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and a pointer to them.
    header = struct.pack("@HP", length, ctypes.addressof(instructions))
    argument = ctypes.create_string_buffer(header, len(header))
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, argument, 0, 0) == 0)


def _socket_filter(architecture: int, numbers: dict[str, int]) -> bytes:
    refused = [number for name, number in numbers.items() if name != "socket"] + [_IO_URING_SETUP, _PIDFD_GETFD]
    # Each instruction: code, where to go on if true and if false (in instructions to skip), and a number.
    body = [
        (_LOAD, 0, 0, _AT_NUMBER),
        (_JUMP_AT_LEAST, "refuse", 0, _X32_BIT),
        *((_JUMP_EQUAL, "refuse", 0, number) for number in refused),
        (_JUMP_EQUAL, 0, "allow", numbers["socket"]),
        (_LOAD, 0, 0, _AT_FIRST_ARGUMENT),
        (_JUMP_EQUAL, "allow", "refuse", _AF_UNIX),
    ]
    # Another architecture has other numbers (32-bit programs).
    body = [(_LOAD, 0, 0, _AT_ARCHITECTURE), (_JUMP_EQUAL, 0, "refuse", architecture), *body]
    ends = {"allow": len(body), "refuse": len(body) + 1}
    lines = [*body, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    packed = b""
    for index, (code, if_true, if_false, value) in enumerate(lines):
        skips = (ends[label] - index - 1 if isinstance(label, str) else label for label in (if_true, if_false))
        packed += struct.pack("=HBBI", code, *skips, value)
    return packed


def _restrict_processes(libc: ctypes.CDLL) -> bool:
    """Close other processes' memory, environment and abstract sockets to this one (Landlock)."""
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    # Before version 2 (Linux 5.19) files could not be moved from one folder to another any more.
    if version < 2:
        return False
    # Landlock needs something to forbid; all files stay as they are.
    attributes = struct.pack("=3Q", _MAKE_BLOCK_DEVICE | _MOVE_BETWEEN_FOLDERS, 0, _SCOPES if version >= 6 else 0)
    rules = libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        allowed = struct.pack("=Qi", _MOVE_BETWEEN_FOLDERS, root)
        return bool(
            libc.syscall(_LANDLOCK_ADD_RULE, rules, _LANDLOCK_PATH_BENEATH, allowed, 0) == 0
            and libc.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0
        )
    finally:
        os.close(root)
        os.close(rules)


def main(argv: Sequence[str]) -> None:
    """Confine this process and become `argv`; without a command, print what is out of reach."""
    barriers = confine()
    if not argv:
        print(*barriers)  # noqa: T201 - read by the doctor.
        return
    try:
        os.execvp(argv[0], list(argv))
    except OSError as error:
        sys.exit(f"{argv[0]} cannot be started: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
