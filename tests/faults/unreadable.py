"""A file on a bad sector, all of it or one byte: the disk answers EIO until it is written anew."""

import errno
import os

import numpy as np

from storage import singles
from storage.local import LocalStore


def on_a_bad_sector(monkeypatch, path):
    """Let every read of a file fail as the kernel has it fail, for as long as it is this file."""
    inode, open_it = path.stat().st_ino, LocalStore.open

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def open_or_not(store, name):
        file = open_it(store, name)
        there = store.folder / name
        if there.resolve() == path.resolve() and there.stat().st_ino == inode:
            file.read = file.read_into = file.read_into_each = fail
        return file

    monkeypatch.setattr(LocalStore, "open", open_or_not)
    _fail_each(monkeypatch, inode, 0, path.stat().st_size)


def on_one_bad_sector(monkeypatch, path, offset):
    """Let every read of a file that takes in a byte fail, and others not."""
    preadv, inode = os.preadv, path.stat().st_ino

    def on_a_bad_disk(descriptor, buffers, start):
        length = sum(map(len, buffers))
        if start <= offset < start + length and os.fstat(descriptor).st_ino == inode:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(descriptor, buffers, start)

    monkeypatch.setattr(os, "preadv", on_a_bad_disk)
    _fail_each(monkeypatch, inode, offset, offset + 1)


def _fail_each(monkeypatch, inode, start, stop):
    """Let the kernel's many reads fail where they take in a byte of a file."""
    read_each = singles.read_each

    def on_a_bad_disk(descriptors, addresses, lengths, offsets):
        done = read_each(descriptors, addresses, lengths, offsets)
        for number in np.flatnonzero((offsets < stop) & (start < offsets + lengths)):
            if done is not None and os.fstat(descriptors[number]).st_ino == inode:
                done[number] = -errno.EIO
        return done

    monkeypatch.setattr(singles, "read_each", on_a_bad_disk)
