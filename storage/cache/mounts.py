"""Which folders lie on a disk of this machine, and which on a network file system."""

from pathlib import Path

_NETWORK = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gpfs"),
    *("lustre", "ncpfs", "nfs", "nfs4", "panfs", "pvfs2", "smb3", "smbfs", "wekafs"),
}
MOUNTS = Path("/proc/self/mounts")


def network_file_system(folder: Path) -> str | None:
    """The kind of network file system a folder lies on; None for a disk of this machine.

    Args:
        folder: From the root, without links.
    """
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:  # no Linux
        return None
    kinds = {}
    for line in lines:
        _, place, kind = line.split()[:3]
        kinds[Path(place.replace("\\040", " "))] = kind
    kind = next((kinds[path] for path in (folder, *folder.parents) if path in kinds), "")
    return kind if kind in _NETWORK else None
