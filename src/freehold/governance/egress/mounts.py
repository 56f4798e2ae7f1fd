"""File systems that another program or machine answers for: to look up a path there is to send it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# The kernel itself answers for these, from memory or a disk of this machine.
_LOCAL = frozenset(
    "ext2 ext3 ext4 xfs btrfs zfs f2fs jfs reiserfs bcachefs nilfs2 minix hfsplus vfat exfat ntfs3 msdos iso9660 udf "
    "squashfs erofs cramfs romfs overlay aufs ecryptfs tmpfs ramfs rootfs devtmpfs devpts proc sysfs cgroup cgroup2 "
    "mqueue hugetlbfs debugfs tracefs securityfs selinuxfs pstore bpf configfs efivarfs binfmt_misc fusectl nsfs "
    "resctrl rpc_pipefs nfsd".split()
)
# systemd's trigger, which has one name and passes on none.
_TRIGGERS = {("/proc/sys/fs/binfmt_misc", "autofs")}


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted file system. path: where; kind: as the kernel names it."""

    path: str
    kind: str

    @property
    def sentence(self) -> str:
        """For a record."""
        return (
            f"at {self.path} a file system of kind {self.kind} is mounted: another program or machine is told each path"
        )


def remote_mounts(table: Path = Path("/proc/self/mountinfo")) -> list[Mount]:
    """The mounts of this process that are not known to be local, in the order of their paths. Raises OSError."""
    found = set()
    for line in table.read_text("utf-8", errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        path = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
        kind = after.split()[0]
        if kind not in _LOCAL and (path, kind) not in _TRIGGERS:
            found.add(Mount(path, kind))
    return sorted(found, key=lambda mount: mount.path)
