"""Landlock: what a process may do with files, for good. https://docs.kernel.org/userspace-api/landlock.html"""

import os
import stat
import struct
from pathlib import Path

from worker.linux.calls import syscall

# linux/landlock.h
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_DIR, _MAKE_REG, _REFER, _TRUNCATE, _IOCTL_DEV = 1 << 7, 1 << 8, 1 << 13, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # by version, from that one on
_TCP, _SCOPES = 0b11, 0b11  # bind and connect; abstract sockets and signals
_VERSION_FLAG, _PATH_BENEATH = 1, 1

LIST = _READ_DIR
READ = _EXECUTE | _READ_FILE | _READ_DIR
CHANGE = (  # everything but to execute, and to make links, devices and sockets
    _READ_FILE | _READ_DIR | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
)
LINK = 1 << 12  # symbolic ones
DEVICE = READ | _WRITE_FILE | _IOCTL_DEV
UNLISTED = _READ_FILE | _WRITE_FILE | _MAKE_REG | _REMOVE_FILE | _TRUNCATE  # files of known names alone
SCOPES_FROM = 6  # the version that keeps signals and abstract sockets inside


class Landlock:
    """A ruleset of this kernel's version of Landlock: what is not allowed is refused.

    Processes outside cannot be traced, nor their environment and memory read, whatever the rules.

    Args:
        sandboxed: whether TCP, and signals and abstract sockets to processes outside, are refused too.
        tcp: whether TCP is allowed all the same.

    Raises:
        OSError: where the kernel has none.
    """

    def __init__(self, sandboxed: bool, tcp: bool = False) -> None:
        self.version = syscall("landlock_create_ruleset", None, 0, _VERSION_FLAG)
        self._handled = max(access for version, access in _HANDLED.items() if version <= self.version)
        fields = [self._handled]
        fields += [_TCP if sandboxed and not tcp else 0] if self.version >= 4 else []
        fields += [_SCOPES if sandboxed else 0] if self.version >= SCOPES_FROM else []
        attributes = struct.pack(f"{len(fields)}Q", *fields)
        self._rules = syscall("landlock_create_ruleset", attributes, len(attributes), 0)

    def allow(self, path: Path, access: int) -> None:
        """Allow it on a file, or on a folder and all below."""
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                access &= _OF_FILES
            rule = struct.pack("=Qi", access & self._handled, descriptor)
            syscall("landlock_add_rule", self._rules, _PATH_BENEATH, rule, 0)
        finally:
            os.close(descriptor)

    def restrict(self) -> None:
        """Apply it to this thread and all that comes of it. It needs PR_SET_NO_NEW_PRIVS."""
        syscall("landlock_restrict_self", self._rules, 0)
        os.close(self._rules)
