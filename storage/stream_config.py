"""How a data set is streamed: what a training recipe says under `stream`."""

from dataclasses import dataclass
from typing import Literal

from storage.errors import InputError
from storage.order import Window


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How a data set is streamed.

    Args:
        window: How to mix where single events are read slowly, as from spinning disks and object
            stores; by default any event may stand next to any other.
        threads: Reading threads; by default a short calibration decides, which says what it found.
        prefetch: Batches read ahead; by default the same calibration decides.
        memory: That buffers and tables may take [bytes].
        damaged: What becomes of damaged events: `stop` ends the iteration with their name, `skip`
            leaves them out, names and counts them.
        checksums: When the checksums of uncompressed events of a local disk are compared: when each
            is read `first` by this stream, or `always`. All others always are.
        past_cache: Whether to read past the page cache; by default where the events do not fit into
            the memory that is free. Compressed events are always read through it.
        cache: Folder on a local disk where what is read of an object store is kept; several
            processes and data sets may share it.
        cache_bytes: That the cache may take.
        growing: Whether shards may be missing. An epoch then has the events of those that are
            finished at its start (the first one: when the stream is made), counted in order.
    """

    window: Window | None = None
    threads: int | None = None
    prefetch: int | None = None
    memory: float = 8e9
    damaged: Literal["stop", "skip"] = "stop"
    checksums: Literal["first", "always"] = "first"
    past_cache: bool | None = None
    cache: str | None = None
    cache_bytes: float = 50e9
    growing: bool = False

    def __post_init__(self) -> None:
        for name, least in (("threads", 1), ("prefetch", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}: got {value}, at least {least} is needed")
