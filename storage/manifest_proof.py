"""Whether a manifest is as it was written, and of this data set.

All that is known of a shard is read out of its manifest, so whoever relies on that proves it first:
by its own digest, and by that of the group's metadata, which it records.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import blake3

from storage.documents import parse_json, seal_holds
from storage.errors import DamagedDataError, Unreadable
from storage.finding import Finding
from storage.manifest import Manifest, manifest_path, parse_manifest
from storage.metadata import schema_from_metadata
from storage.schema import GROUP_METADATA, Schema
from storage.urls import Store, store_of


def proved_manifest(url: str | Path | Store, group: bytes, shard: int) -> Manifest:
    """Read the manifest of a shard, and see whether it is as it was written.

    Args:
        url: The data set.
        group: The group's metadata.
        shard: Its number.

    Raises:
        DamagedDataError: It is missing, altered, or of another data set.
    """
    return next(proved_manifests(url, group, [shard]))


def proved_manifests(
    url: str | Path | Store, group: bytes, shards: Sequence[int]
) -> Iterator[Manifest]:
    """Do the same for some shards, one after the other.

    Raises:
        DamagedDataError: One of them is missing, altered, or of another data set.
    """
    store, paths = store_of(url), list(map(manifest_path, shards))
    for shard, path, content in zip(
        shards, paths, store.contents(paths, forbidden=True), strict=True
    ):
        manifest = manifest_or_finding(content, group, shard)
        if isinstance(manifest, Finding):
            raise DamagedDataError(
                f"{store.where(path)}: {manifest.what}; `strainflow repair {store.url}` mends it"
            )
        yield manifest


def manifest_or_finding(
    content: bytes | Unreadable | None, group: bytes, shard: int
) -> Manifest | Finding:
    """Read a manifest, or say what is wrong with it.

    Args:
        content: Of its file, or why that cannot be read; None where there is none.
        group: The group's metadata.
        shard: The shard that it should speak of.
    """
    path, schema = manifest_path(shard), schema_of(group)
    try:
        manifest = parse_manifest(content, schema, shard, path)
    except DamagedDataError as error:
        what = str(error).removeprefix(f"{path}: ").partition(";")[0]
        forbidden = isinstance(content, Unreadable) and content.forbidden
        return Finding(path, what, shard, mendable=not forbidden)
    if not manifest.digest and not manifest.dataset:  # of before 0.3.0
        return manifest
    assert isinstance(content, bytes), "parsed"
    if not seal_holds(content, manifest.digest):
        return Finding(path, "is not as it was written: its digest is another", shard)
    if manifest.dataset != blake3.blake3(group).hexdigest():
        return Finding(path, "is of another data set", shard, tuple(schema.events_of(shard)))
    return manifest


@lru_cache(maxsize=4)
def schema_of(group: bytes) -> Schema:
    """What the group's metadata say; kept, since it is asked for each shard."""
    return schema_from_metadata(parse_json(group, GROUP_METADATA), "the data set")
