"""Which files this process holds open.

The number of all its descriptors says nothing in a process that other tests ran in before: what
those left behind, a loop of Dask for one, opens and closes descriptors of its own at any time.
"""

from pathlib import Path


def open_under(folder: Path) -> list[Path]:
    """Open files and folders in `folder`, itself and removed ones included."""
    return [target for target in targets() if target.is_relative_to(folder)]


def targets() -> list[Path]:
    """What the descriptors of this process point to; `pipe:[NUMBER]` for a pipe."""
    return [target(link) for link in Path("/proc/self/fd").iterdir()]


def target(link: Path) -> Path:
    try:
        return link.readlink()
    except FileNotFoundError:  # closed by another thread since it was listed
        return Path()
