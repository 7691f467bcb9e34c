"""What verification finds, in the words that `verify`, `repair` and `info` print.

Everything that looks at a data set says what is wrong with it in this one form, whether it looked
at metadata, at manifests or at the events of a shard.
"""

from dataclasses import dataclass

from storage.errors import Unreadable, printable


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was written.

    Attributes:
        file: Its path within the data set.
        what: What is wrong with it.
        shard: Of which shard it is; None where it is of none.
        events: Those that are damaged by it; none where no event is.
        mendable: Whether it is for `strainflow repair` to mend; not so what is somebody else's, or
            may not be read.
    """

    file: str
    what: str
    shard: int | None = None
    events: tuple[int, ...] = ()
    mendable: bool = True

    def __str__(self) -> str:
        place = "" if self.shard is None else f" (shard {self.shard}{_numbers(self.events)})"
        return f"{printable(self.file)}: {self.what}{place}"


def altered(path: str, content: bytes | Unreadable | None) -> Finding:
    """Say what is wrong with a file that has not the bytes that it should have."""
    if isinstance(content, Unreadable):
        return Finding(path, str(content), mendable=not content.forbidden)
    return Finding(path, "is missing" if content is None else "is not as it was written")


def _numbers(events: tuple[int, ...]) -> str:
    """Say which events, in as few words as they need."""
    if not events:
        return ""
    if len(events) == 1:
        return f", event {events[0]}"
    if events[-1] - events[0] + 1 == len(events):
        return f", events {events[0]} to {events[-1]}"
    shown = ", ".join(map(str, events[:10]))
    return f", events {shown}{', ...' if len(events) > 10 else ''}"
