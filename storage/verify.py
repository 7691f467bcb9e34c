"""Whether every byte of a data set is as it was written; and if not, which file, shard and event.

Digests of whole files find the damage: of the three files of each shard, in its manifest; of the
manifest, in itself; of the group's metadata, in every manifest; of all other metadata, in those.
Where a digest is wrong, checksums of single events, the tar's headers, and what two files both tell
say which events are concerned.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.digests import file_digest
from storage.errors import FORBIDDEN, UNREADABLE, Unreadable
from storage.examine import Examination
from storage.finding import Finding
from storage.inventory import Inventory
from storage.manifest import manifest_path, recorded_digest
from storage.manifest_proof import manifest_or_finding, schema_of
from storage.urls import Store, store_of


@dataclass(frozen=True)
class ShardVerdict:
    """What was found in one shard.

    Attributes:
        shard: Its number.
        events: How many it holds.
        bytes: That were read.
        findings: What is wrong with it.
    """

    shard: int
    events: int
    bytes: int
    findings: tuple[Finding, ...]


def verify_shard(url: str | Path | Store, group: bytes, shard: int) -> ShardVerdict:
    """Verify every byte of the files of one finished shard.

    Args:
        url: The data set.
        group: The group's metadata.
        shard: Its number.
    """
    store, schema = store_of(url), schema_of(group)
    (content,) = store.contents([manifest_path(shard)], forbidden=True)
    events = len(schema.events_of(shard))
    total = len(content) if isinstance(content, bytes) else 0
    manifest = manifest_or_finding(content, group, shard)
    if isinstance(manifest, Finding):  # then nothing is known of the files
        return ShardVerdict(shard, events, total, (manifest,))
    sound, unreadable = dict[str, bool](), dict[str, Unreadable]()
    for file, facts in manifest.files.items():
        kind, recorded = recorded_digest(facts)
        try:
            length, digest = file_digest(store, file, kind)
        except OSError as error:
            if error.errno not in (*UNREADABLE, *FORBIDDEN):
                raise
            sound[file], unreadable[file] = False, Unreadable.of(error)
            continue
        total += length or 0
        sound[file] = (length, digest) == (facts["bytes"], recorded)
    found = Examination(store, schema, manifest, sound, unreadable).findings()
    return ShardVerdict(shard, events, total, tuple(found))


def look_at_lengths(url: str | Path | Store, inventory: Inventory) -> Iterator[ShardVerdict]:
    """See whether the files of each finished shard are there and as long as they were written.

    The manifests, which say how long, are proved too.

    Args:
        url: The data set.
        inventory: Of it.
    """
    store, schema = store_of(url), inventory.schema
    length_of = store.lengths()
    paths = [manifest_path(shard) for shard in inventory.finished]
    for shard, content in zip(
        inventory.finished, store.contents(paths, forbidden=True), strict=True
    ):
        events = len(schema.events_of(shard))
        manifest = manifest_or_finding(content, inventory.group, shard)
        if isinstance(manifest, Finding):
            yield ShardVerdict(shard, events, 0, (manifest,))
            continue
        findings = []
        for file, facts in manifest.files.items():
            try:
                length = length_of(file)
            except PermissionError as error:
                what = str(Unreadable.of(error))
                findings.append(Finding(file, what, shard, mendable=False))
                continue
            if length != facts["bytes"]:
                what = "is missing" if length is None else f"has {length:,} bytes"
                findings.append(Finding(file, f"{what}, {facts['bytes']:,} were written", shard))
        yield ShardVerdict(shard, events, 0, tuple(findings))
