"""A root folder of a process's own: mount_namespaces(7), open_tree(2), mount_setattr(2), pivot_root(2)."""

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from worker.linux.calls import call, syscall

RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8  # MS_* and MOUNT_ATTR_* are the same
READ_ONLY = RDONLY | NOSUID | NODEV
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_CLONE_NEWNS, _MS_PRIVATE, _MS_REC, _MS_REMOUNT = 0x00020000, 1 << 18, 1 << 14, 1 << 5
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _MNT_DETACH = 1, 4, 2
_MOST_LINKS = 40  # that Linux follows on one path
_FRESH = (  # other users' processes are not to be seen, nor what they share
    (b"proc", "proc", NOSUID | NODEV | NOEXEC, b"hidepid=2"),
    (b"tmpfs", "dev/shm", NOSUID | NODEV | NOEXEC, b"mode=1777"),
)


def new_root(view: Mapping[str, int], home: Path) -> None:
    """A root folder with nothing in it but ``view``: paths, and the flags they are mounted with.

    Args:
        home: the working folder; one of the paths.

    Raises:
        OSError: where that is not allowed.
    """
    umask = os.umask(0o022)  # what is made here has to let another uid through
    call("unshare", _CLONE_NEWNS)
    call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    links = {link: target for path in view for link, target in _links_on(Path(path))}
    trees: dict[Path, tuple[int, int]] = {}
    for path, flags in sorted((Path(path).resolve(), flags) for path, flags in view.items()):
        if not any(path.is_relative_to(other) and flags == how for other, (_, how) in trees.items()):
            trees[path] = _clone_of(path, flags), flags
    call("mount", b"root", os.fsencode(home), b"tmpfs", NOSUID | NODEV, b"mode=755")
    for path, (tree, _) in trees.items():
        _attach(tree, _below(home, path), path.is_dir())
    for link, target in links.items():
        place = _below(home, link)
        if not os.path.lexists(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(target)
    for kind, name, flags, options in _FRESH:
        place = home / name
        place.mkdir(parents=True, exist_ok=True)
        call("mount", kind, os.fsencode(place), kind, flags, options)
    call("mount", None, os.fsencode(home), None, _MS_REMOUNT | READ_ONLY, None)
    os.chdir(home)
    syscall("pivot_root", b".", b".")
    call("umount2", b".", _MNT_DETACH)
    os.chdir(home)
    os.umask(umask)


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _clone_of(path: Path, flags: int) -> int:
    """A descriptor of a copy of the mount at ``path``, and of those below it."""
    how = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    tree = syscall("open_tree", _AT_FDCWD, os.fsencode(path), how)
    attributes = struct.pack("QQQQ", flags, 0, 0, 0)  # struct mount_attr: set, clear, propagation, user namespace
    syscall("mount_setattr", tree, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, attributes, len(attributes))
    return tree


def _attach(tree: int, place: Path, folder: bool) -> None:
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir() if folder else place.touch()
    syscall("move_mount", tree, b"", _AT_FDCWD, os.fsencode(place), _MOVE_MOUNT_F_EMPTY_PATH)
    os.close(tree)


def _links_on(path: Path) -> list[tuple[Path, Path]]:
    """The symbolic links that a path leads through, and where each points."""
    links: list[tuple[Path, Path]] = []
    at, parts = Path("/"), list(path.parts[1:])
    while parts and len(links) < _MOST_LINKS:
        at, parts = at / parts[0], parts[1:]
        if at.is_symlink():
            target = at.readlink()
            links.append((at, target))
            whole = Path(os.path.normpath(at.parent / target))
            at, parts = Path("/"), [*whole.parts[1:], *parts]
    return links
