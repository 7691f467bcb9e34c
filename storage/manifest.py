"""Manifests: what is known of each finished shard, and whether its files are all there.

A shard's manifest is written last, so that it marks the shard as complete.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import DamagedDataError
from storage.files import read_json, write_atomically
from storage.schema import GROUP_METADATA, MANIFEST_FOLDER, Schema, canonical_json


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
        rejected: Draws thrown away, counted by reason.
        checks: What checks of the shard's own files found, by name; each says whether it `passed`.
    """

    shard: int
    first_event: int
    events: int
    files: Mapping[str, Mapping[str, Any]]
    crc32c: tuple[int, ...]
    largest_snr_loss: float
    rejected: Mapping[str, int]
    checks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # none before 0.2.0


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest: from then on the shard counts as finished."""
    path = manifest_path(folder, manifest.shard)
    write_atomically(path, canonical_json(vars(manifest)), contested=True)


def read_manifests(folder: Path, schema: Schema) -> dict[int, Manifest]:
    """Read the manifest of every finished shard, by its number.

    Raises:
        DamagedDataError: One of them was altered.
    """
    return {manifest.shard: manifest for manifest in iterate_manifests(folder, schema)}


def iterate_manifests(folder: Path, schema: Schema) -> Iterator[Manifest]:
    """Read the manifest of every finished shard, one after the other, in order.

    Raises:
        DamagedDataError: One of them was altered.
    """
    for shard in finished_shards(folder, schema):
        path = manifest_path(folder, shard)
        try:
            content = read_json(path)
            manifest = Manifest(**content | {"crc32c": tuple(content["crc32c"])})
        except DamagedDataError as error:
            raise DamagedDataError(f"{error}; {_to_restore(path)}") from None
        except (KeyError, TypeError):
            raise DamagedDataError(
                f"{path}: lacks something, so it was altered; {_to_restore(path)}"
            ) from None
        yield manifest


def finished_shards(folder: Path, schema: Schema) -> list[int]:
    """The numbers of the shards that have a manifest, in order."""
    present = {path.stem for path in (folder / MANIFEST_FOLDER).glob("*.json")}
    return [shard for shard in range(schema.shards) if f"{shard:06d}" in present]


def has_finished_shards(folder: Path) -> bool:
    """Whether any shard has a manifest."""
    return any(path.name != GROUP_METADATA for path in (folder / MANIFEST_FOLDER).glob("*.json"))


def require_complete(folder: Path, schema: Schema) -> dict[int, Manifest]:
    """Return all manifests after a look at every file's presence and length.

    Raises:
        DamagedDataError: A shard is missing, or a file has not the length that was written.
    """
    manifests = read_manifests(folder, schema)
    if missing := schema.shards - len(manifests):
        raise DamagedDataError(
            f"{folder}: {missing} of {schema.shards} shards are missing; run the same "
            "`strainflow simulate` again to complete it"
        )
    for manifest in manifests.values():
        if problem := first_problem(folder, manifest):
            raise DamagedDataError(problem)
    return manifests


def first_problem(folder: Path, manifest: Manifest) -> str | None:
    """Name the first file of a shard that is missing or has another length than it was given."""
    for path, facts in manifest.files.items():
        try:
            length = (folder / path).stat().st_size
        except FileNotFoundError:
            length = None
        if length != facts["bytes"]:
            state = "is missing" if length is None else f"has {length:,} bytes"
            return (
                f"{folder / path}: {state}, {facts['bytes']:,} were written (shard "
                f"{manifest.shard}, events {manifest.first_event} to "
                f"{manifest.first_event + manifest.events - 1}); delete "
                f"{manifest_path(folder, manifest.shard)} and run the same `strainflow simulate` "
                "again to restore it"
            )
    return None


def manifest_path(folder: Path, shard: int) -> Path:
    """Where the manifest of a shard lies."""
    return folder / MANIFEST_FOLDER / f"{shard:06d}.json"


def _to_restore(manifest: Path) -> str:
    return f"delete {manifest} and run the same `strainflow simulate` again to restore its shard"
