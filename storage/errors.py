"""The two ways in which a call can end badly; the front door turns them into exit codes 2 and 1."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self


class InputError(ValueError):
    """What the user gave cannot be used: the message says what came, what was wanted, the mend.

    Exit code 2.
    """


class PeakError(InputError):
    """The peak of an event exceeds what the encoding holds."""


class DamagedDataError(RuntimeError):
    """Files are missing, truncated or altered: the message names the file and what mends it.

    Exit code 1.
    """


# What a disk or a file system answers where bytes are lost: damage, not a wrong call.
UNREADABLE = (errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.EREMOTEIO)


# What it answers where we have no right to read: nobody knows whether there is damage.
FORBIDDEN = (errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class Unreadable:
    """Stands for the content of a file that is there, but that the disk cannot read.

    Attributes:
        why: What the disk says.
        forbidden: Whether it is a matter of rights.
    """

    why: str
    forbidden: bool = False

    @classmethod
    def of(cls, error: OSError) -> Self:
        """What a read ended with."""
        return cls(str(error.strerror), error.errno in FORBIDDEN)

    def __str__(self) -> str:
        return f"cannot be read ({self.why})"


MEND = "`strainflow verify` says what is damaged, `strainflow repair` mends it"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what the system says of an open file name that file, which it does not by itself.

    Args:
        path: Of the file.

    Raises:
        OSError: The same, with the file's name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def printable(text: str) -> str:
    """A name for one line of a terminal: what is no character to be printed is escaped."""
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # stands for a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character if character.isprintable() else ascii(character)[1:-1]
