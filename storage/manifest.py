"""Manifests: what is known of each finished shard, and whether its files are all there.

A shard's manifest is written last, so that it marks the shard as complete.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import blake3
import numpy as np
from jaxtyping import Float64

from storage.arrays import Array
from storage.documents import SEAL, parse_json, sealed_json
from storage.errors import DamagedDataError, Unreadable
from storage.schema import GROUP_METADATA, MANIFEST_FOLDER, Schema, shard_files
from storage.urls import Store, store_of

_NAME = re.compile(r"(\d{6,18})\.json")

# How files of a shard were digested, by the name that manifests give it; SHA-256 before 0.2.0.
HASHES: Mapping[str, Callable[..., Any]] = {"blake3": blake3.blake3, "sha256": hashlib.sha256}


@dataclass(frozen=True)
class Manifest:
    """What is known of a finished shard.

    Attributes:
        shard: Its number.
        first_event: Number of its first event.
        events: How many it holds.
        files: Length in bytes and BLAKE3 digest of each of its files, by path within the data set.
        crc32c: Checksum of each event's stored strain.
        largest_snr_loss: The largest share of the SNR that the encoding took from one event.
        worst_event: The event from which it took that.
        rejected: Draws thrown away, counted by reason.
        checks: What checks of the shard's own files found, by name; each says whether it `passed`.
        dataset: BLAKE3 digest of the group's metadata: to which data set the shard belongs.
        replaced: Where a repair was accepted that gave other bytes: the digests of the files that
            were there before, by path.
        digest: Of the manifest itself.
    """

    shard: int
    first_event: int
    events: int
    files: Mapping[str, Mapping[str, Any]]
    crc32c: tuple[int, ...]
    largest_snr_loss: float
    rejected: Mapping[str, int]
    checks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # none before 0.2.0
    worst_event: int = 0  # this and what follows: none before 0.3.0
    dataset: str = ""
    replaced: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""

    @property
    def bytes(self) -> int:
        """Of all files of the shard."""
        return sum(facts["bytes"] for facts in self.files.values())

    @property
    def last_event(self) -> int:
        """Number of its last event."""
        return self.first_event + self.events - 1

    def with_checks(self, checks: Mapping[str, Mapping[str, Any]]) -> Self:
        """The same, with what checks found."""
        return replace(self, checks=checks)


def write_manifest(url: str | Path | Store, manifest: Manifest) -> Manifest:
    """Write a manifest: from then on the shard counts as finished. Return it with its digest."""
    content = sealed_json(vars(manifest))
    store_of(url).write(manifest_path(manifest.shard), content, contested=True)
    return replace(manifest, digest=parse_json(content, "")[SEAL])


def read_manifests(url: str | Path | Store, schema: Schema) -> dict[int, Manifest]:
    """Read the manifest of every finished shard, by its number.

    Raises:
        DamagedDataError: One of them was altered.
    """
    return {manifest.shard: manifest for manifest in iterate_manifests(url, schema)}


def iterate_manifests(url: str | Path | Store, schema: Schema) -> Iterator[Manifest]:
    """Read the manifest of every finished shard, one after the other, in order.

    Raises:
        DamagedDataError: One of them was altered.
    """
    for _, manifest in manifests_or_damage(url, schema):
        if isinstance(manifest, DamagedDataError):
            raise manifest
        yield manifest


def manifests_or_damage(
    url: str | Path | Store, schema: Schema
) -> Iterator[tuple[int, Manifest | DamagedDataError]]:
    """The same, but give what is wrong with a damaged one in its place; each behind its shard."""
    store = store_of(url)
    shards = finished_shards(store, schema)
    contents = store.contents([manifest_path(shard) for shard in shards])
    for shard, content in zip(shards, contents, strict=True):
        if content is None:  # it may have been removed meanwhile
            continue
        try:
            yield shard, parse_manifest(content, schema, shard, store.where(manifest_path(shard)))
        except DamagedDataError as error:
            yield shard, error


def read_manifest(url: str | Path | Store, schema: Schema, shard: int) -> Manifest:
    """Read the manifest of a shard.

    Raises:
        DamagedDataError: It is missing or was altered.
    """
    store, path = store_of(url), manifest_path(shard)
    (content,) = store.contents([path])
    return parse_manifest(content, schema, shard, store.where(path))


def read_table(
    url: str | Path | Store, schema: Schema, manifest: Manifest, name: str
) -> Float64[Array, "event column"]:
    """Read the parameters or the SNRs of a shard's events.

    Args:
        url: The data set.
        schema: What it is.
        manifest: Of the shard.
        name: `parameters` or `optimal_snr`.

    Raises:
        DamagedDataError: They are not as they were written.
    """
    store, path = store_of(url), shard_files(manifest.shard)[name]
    (content,) = store.contents([path])
    kind, recorded = recorded_digest(manifest.files[path])
    if isinstance(content, Unreadable):
        raise DamagedDataError(
            f"{store.where(path)}: {content} (shard {manifest.shard}); `strainflow repair "
            f"{store.url}` mends it"
        )
    if content is None or HASHES[kind](content).hexdigest() != recorded:
        raise DamagedDataError(
            f"{store.where(path)}: is missing or not as it was written (shard {manifest.shard}); "
            f"`strainflow repair {store.url}` mends it"
        )
    return np.frombuffer(content, "<f8").reshape(schema.events_per_shard, -1)


def parse_manifest(
    content: bytes | Unreadable | None, schema: Schema, shard: int, name: str
) -> Manifest:
    """Read a manifest from its bytes.

    Args:
        content: Of the file; None where there is none.
        schema: What the data set is.
        shard: The shard that it should speak of.
        name: Of the file, for the message.

    Raises:
        DamagedDataError: It is missing, or not the manifest of that shard of that data set.
    """
    mend = "`strainflow repair` mends it"
    try:
        document = parse_json(content, name)
    except DamagedDataError as error:
        raise DamagedDataError(f"{error}; {mend}") from None
    try:
        manifest = Manifest(**document | {"crc32c": tuple(document["crc32c"])})
        wrong = _first_impossible(manifest, schema, shard)
    except (AttributeError, KeyError, TypeError):
        raise DamagedDataError(f"{name}: lacks something, so it was altered; {mend}") from None
    if wrong is not None:
        raise DamagedDataError(f"{name}: its {wrong} cannot be, so it was altered; {mend}")
    return manifest


def _first_impossible(manifest: Manifest, schema: Schema, shard: int) -> str | None:
    """The first entry of a manifest that does not fit its shard."""
    expected = schema.events_of(shard)
    numbers = manifest.shard, manifest.first_event, manifest.events, manifest.worst_event
    if not all(type(number) is int for number in numbers) or (
        manifest.shard,
        manifest.first_event,
        manifest.events,
    ) != (
        shard,
        expected.start,
        len(expected),
    ):
        return "number of the shard or of its events"
    if set(manifest.files) != set(shard_files(shard).values()):  # nothing outside the data set
        return "list of files"
    if not all(
        _is_count(facts["bytes"]) and isinstance(recorded_digest(facts)[1], str)
        for facts in manifest.files.values()
    ):
        return "lengths or digests"
    columns = {"parameters": len(schema.parameters), "optimal_snr": len(schema.detectors)}
    if any(
        manifest.files[shard_files(shard)[name]]["bytes"] != 8 * schema.events_per_shard * count
        for name, count in columns.items()
    ):
        return "length of a table"
    if len(manifest.crc32c) != len(expected) or not all(
        type(value) is int and 0 <= value < 2**32 for value in manifest.crc32c
    ):
        return "checksums"
    if not isinstance(manifest.largest_snr_loss, int | float) or not math.isfinite(
        manifest.largest_snr_loss
    ):
        return "loss"
    if not all(isinstance(text, str) for text in (manifest.dataset, manifest.digest)):
        return "digests"
    if not all(map(_is_count, manifest.rejected.values())):
        return "rejected draws"
    if not all(isinstance(found["passed"], bool) for found in manifest.checks.values()):
        return "checks"
    if not all(isinstance(digest, str) for digest in manifest.replaced.values()):
        return "replaced files"
    return None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def recorded_digest(facts: Mapping[str, Any]) -> tuple[str, str]:
    """Which digest of a file a manifest holds, and the digest."""
    kind = next((name for name in HASHES if name in facts), "blake3")
    return kind, facts[kind]


def dataset_identity(url: str | Path | Store) -> str:
    """BLAKE3 digest of the group's metadata, which say what the data set is."""
    return blake3.blake3(store_of(url).read(GROUP_METADATA)).hexdigest()


def finished_shards(url: str | Path | Store, schema: Schema) -> list[int]:
    """The numbers of the shards that have a manifest, in order."""
    return sorted(shard for shard in _named_shards(store_of(url)) if shard < schema.shards)


def has_finished_shards(url: str | Path | Store) -> bool:
    """Whether any shard has a manifest."""
    return any(True for _ in _named_shards(store_of(url)))


def _named_shards(store: Store) -> Iterator[int]:
    for name in store.names(MANIFEST_FOLDER):
        match = _NAME.fullmatch(name)
        if match and name == f"{int(match[1]):06d}.json":
            yield int(match[1])


def require_sound(url: str | Path | Store, schema: Schema, growing: bool = False) -> list[int]:
    """Look at the presence and length of every file of the finished shards; return their numbers.

    Args:
        url: The data set.
        schema: What it is.
        growing: Whether shards may be missing.

    Raises:
        DamagedDataError: A shard is missing, or a file has not the length that was written.
    """
    store = store_of(url)
    # First the manifests: what is finished while files are listed is there by then.
    manifests = iterate_manifests(store, schema)
    shards, length_of = [], None
    for manifest in manifests:
        length_of = length_of or store.lengths()
        shards.append(manifest.shard)
        if problem := first_problem(store, manifest, length_of):
            raise DamagedDataError(problem)
    missing = schema.shards - len(shards)
    if missing and (not growing or not shards):
        raise DamagedDataError(
            f"{store.url}: {missing} of {schema.shards} shards are missing; run the same "
            f"`strainflow {schema.verb}` again to complete it"
        )
    return shards


def require_complete(url: str | Path | Store, schema: Schema) -> list[int]:
    """The same for all shards of a data set.

    Raises:
        DamagedDataError: A shard is missing, or a file has not the length that was written.
    """
    return require_sound(url, schema)


def first_problem(
    url: str | Path | Store,
    manifest: Manifest,
    length_of: Callable[[str], int | None] | None = None,
) -> str | None:
    """Name the first file of a shard that is missing or has another length than it was given.

    Args:
        url: The data set.
        manifest: Of the shard.
        length_of: Looks lengths up, where they were listed already.
    """
    store = store_of(url)
    for path, facts in manifest.files.items():
        length = (length_of or store.length)(path)
        if length != facts["bytes"]:
            state = "is missing" if length is None else f"has {length:,} bytes"
            return (
                f"{store.where(path)}: {state}, {facts['bytes']:,} were written (shard "
                f"{manifest.shard}, events {manifest.first_event} to {manifest.last_event}); "
                f"`strainflow repair {store.url}` mends it"
            )
    return None


def manifest_path(shard: int) -> str:
    """Where the manifest of a shard lies within the data set."""
    return f"{MANIFEST_FOLDER}/{shard:06d}.json"
