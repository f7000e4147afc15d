"""System calls through the C library, with errno as OSError."""

import ctypes
import os
import platform
import sys
from typing import Any

_BY_MACHINE: dict[str, dict[str, int]] = {  # asm/unistd.h; those from 424 on have one number everywhere
    "x86_64": {
        "socket": 41, "ptrace": 101, "setpgid": 109, "setsid": 112, "pivot_root": 155, "add_key": 248,
        "request_key": 249, "keyctl": 250, "perf_event_open": 298, "process_vm_readv": 310, "process_vm_writev": 311,
        "bpf": 321,
    },
    "aarch64": {
        "pivot_root": 41, "ptrace": 117, "setpgid": 154, "setsid": 157, "socket": 198, "add_key": 217,
        "request_key": 218, "keyctl": 219, "perf_event_open": 241, "process_vm_readv": 270, "process_vm_writev": 271,
        "bpf": 280,
    },
}  # fmt: skip
_EVERYWHERE = {
    "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "pidfd_getfd": 438, "mount_setattr": 442,
    "landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446,
}  # fmt: skip


def number(name: str) -> int:
    """Of a system call. Raises: NotImplementedError."""
    numbers = _EVERYWHERE | _BY_MACHINE.get(platform.machine(), {})
    if sys.platform != "linux" or name not in numbers:
        raise NotImplementedError(f"not known on {platform.system()} {platform.machine()}")
    return numbers[name]


def call(function: str, *arguments: Any) -> int:
    """A function of the C library that says -1 and errno. Raises: OSError, NotImplementedError."""
    if sys.platform != "linux":
        raise NotImplementedError(f"Linux has it, {platform.system()} does not")
    wide = (ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)
    result: int = getattr(ctypes.CDLL(None, use_errno=True), function)(*wide)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")
    return result


def syscall(name: str, *arguments: Any) -> int:
    """A system call by its name. Raises: OSError, NotImplementedError."""
    try:
        return call("syscall", number(name), *arguments)
    except OSError as error:
        raise OSError(error.errno, f"{name}: {os.strerror(error.errno or 0)}") from error
