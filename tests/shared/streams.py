"""Streams as tests vary them, and what they are to notice."""

from dataclasses import fields

import numpy as np

from storage.stream import EventStream
from storage.stream_config import StreamConfig

SETTINGS = {field.name for field in fields(StreamConfig)}


def open_stream(url, kind=EventStream, **options):
    """Make a stream, with the settings of `StreamConfig` among the arguments."""
    settings = {name: options.pop(name) for name in SETTINGS & options.keys()}
    return kind(url, config=StreamConfig(**settings), **options)


def flip_in_event(folder, event):
    """Change a bit in the strain of an event of a set of five events a shard."""
    shard, row = divmod(event, 5)
    path = folder / f"strain/c/{shard}/0/0"
    content = bytearray(path.read_bytes())
    offset, length = np.frombuffer(content[-84:-4], "<u8").reshape(5, 2)[row].tolist()
    content[offset + length // 2] ^= 8
    path.write_bytes(content)
