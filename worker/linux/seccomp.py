"""System calls that a process gives up: seccomp(2), linux/filter.h."""

import ctypes
import errno
import platform
import struct
from collections.abc import Sequence

from worker.linux.calls import call, number

REFUSED = (
    "socket", "io_uring_setup",  # no socket of any family; a pair of connected ones (socketpair) can still be made
    "setsid", "setpgid",  # nothing leaves the group that the supervisor kills
    "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "add_key", "request_key", "keyctl", "bpf",
    "perf_event_open",
)  # fmt: skip
LOCAL_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6; AF_NETLINK, by which a process finds its interfaces
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
_X32 = 0x40000000  # another numbering of the same calls, on x86-64
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def refuse_calls(names: Sequence[str] = REFUSED, families: Sequence[int] = ()) -> None:
    """From here on the refused calls end with EPERM, in every thread and child to come.

    Args:
        families: of sockets that may be made all the same.

    Raises:
        NotImplementedError: on a processor whose numbers are not known here.
    """
    checks = [*((_IF_EQUAL, number(name)) for name in names), (_IF_AT_LEAST, _X32)]
    sockets = [
        (_IF_EQUAL, 0, len(families) + 3, number("socket")),
        (_LOAD, 0, 0, 16),  # its first argument, low half
        *((_IF_EQUAL, len(families) - index, 0, family) for index, family in enumerate(families)),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    program = [  # struct seccomp_data has the call's number at 0, and at 4 for which processor it is
        (_LOAD, 0, 0, 4),
        (_IF_EQUAL, 1, 0, _ARCHITECTURE[platform.machine()]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        *(sockets if families else ()),
        *((how, len(checks) - index, 0, value) for index, (how, value) in enumerate(checks)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    set_seccomp, mode_filter = 22, 2
    call("prctl", set_seccomp, mode_filter, ctypes.byref(Program(len(program), ctypes.addressof(code))), 0, 0)
