"""What a data set says of itself and which files it has, before a byte of a shard is read.

Metadata are proved, shards without a manifest and files that nobody expects are found. `verify`,
`repair` and `info` start from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.dataset import is_recorded_psd
from storage.documents import parse_json
from storage.errors import Unreadable
from storage.finding import Finding, altered
from storage.manifest import finished_shards, manifest_path
from storage.metadata import children_files, schema_from_metadata
from storage.metadata_proof import group_metadata
from storage.schema import (
    GROUP_COPY,
    GROUP_METADATA,
    PSD_CHUNK,
    Schema,
    is_folder_of_ours,
    is_partial_of_ours,
    shard_files,
)
from storage.urls import Store, store_of

FOREIGN, LINK = "does not belong to the data set", "is a link"


@dataclass(frozen=True)
class Inventory:
    """What the metadata and the list of files say.

    Attributes:
        group: The group's metadata that the shards belong to, as bytes.
        schema: What they say.
        finished: The shards that have a manifest.
        findings: What is wrong with metadata, and files that should not be there.
        notes: What could not be verified, and why.
        disputed: Whether the group's metadata and their copy differ, and nothing proves either:
            then `group` is no more than the first of them.
    """

    group: bytes
    schema: Schema
    finished: tuple[int, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    disputed: bool = False


def take_inventory(url: str | Path | Store, listed: bool = True) -> Inventory:
    """Verify the metadata, and look for files that are missing or should not be there.

    Args:
        url: The data set.
        listed: Whether all files are listed, to find those that should not be there.

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: Its metadata are lost.
    """
    store = store_of(url)
    found = group_metadata(store)
    group, findings, identity = found.content, list(found.findings), found.identity
    schema = schema_from_metadata(parse_json(group, store.where(GROUP_METADATA)), store.url)
    children = children_files(parse_json(group, ""))
    for (path, wanted), there in zip(
        children.items(), store.contents(list(children), forbidden=True), strict=True
    ):
        if there != wanted:
            findings.append(altered(path, there))
    (psd,) = store.contents([PSD_CHUNK], forbidden=True)
    if not isinstance(psd, bytes) or not is_recorded_psd(psd, parse_json(group, "")):
        findings.append(altered(PSD_CHUNK, psd))
    finished = finished_shards(store, schema)
    findings += _missing_shards(schema, finished)
    if finished and not identity:  # a run may have finished its first shard meanwhile
        identity = group_metadata(store).identity
        if identity and found.disputed:  # which is settled by that
            return take_inventory(store, listed)
    known = {*children, GROUP_METADATA, GROUP_COPY, PSD_CHUNK}
    findings += _other_files(store, schema, known) if listed else ()
    notes = (
        ()
        if identity or not finished
        else (
            "the manifests are of a strainflow before 0.3.0, which gave them no digests: they "
            "themselves and the group's metadata cannot be verified",
        )
    )
    return Inventory(group, schema, tuple(finished), tuple(findings), notes, found.disputed)


def _missing_shards(schema: Schema, finished: list[int]) -> Iterator[Finding]:
    """One finding for each run of shards that have no manifest."""
    before = -1
    for shard in (*finished, schema.shards):
        first, last = before + 1, shard - 1
        if first <= last:
            events = f"{schema.events_of(first).start} to {schema.events_of(last).stop - 1}"
            what = "is missing, so the shard is not finished"
            if first < last:
                what = f"and those up to {manifest_path(last)} are missing: not finished"
            yield Finding(manifest_path(first), f"{what} (events {events})", first)
        before = shard


def _other_files(store: Store, schema: Schema, known: set[str]) -> Iterator[Finding]:
    """What no writer of ours leaves behind: other files, empty folders, and links."""
    growing = store.is_being_written()
    for entry in store.entries():
        path = entry.path
        if entry.kind == "link":
            yield Finding(path, LINK, mendable=False)
        elif entry.kind == "closed folder":
            yield Finding(f"{path}/", str(Unreadable(entry.why)), mendable=False)
        elif entry.kind == "empty folder":
            if not is_folder_of_ours(path):
                yield Finding(f"{path}/", FOREIGN, mendable=False)
        elif path in known or _is_of_a_shard(path, schema):
            continue
        elif not is_partial_of_ours(path):
            yield Finding(path, FOREIGN, mendable=False)
        elif not growing:
            yield Finding(path, "was left by a writer that died")


def _is_of_a_shard(path: str, schema: Schema) -> bool:
    digits = next((part for part in path.replace(".json", "").split("/") if part.isdecimal()), "")
    if not digits or len(digits) > 18:
        return False
    shard = int(digits)
    return shard < schema.shards and path in (*shard_files(shard).values(), manifest_path(shard))
