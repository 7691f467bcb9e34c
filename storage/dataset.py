"""A data set on disk: created once, filled shard by shard, complete when every manifest is there.

A shard's manifest is written last, so that it marks the shard as complete. Nothing in these files
depends on when, where or in what order they were written.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from storage.arrays import Array
from storage.errors import DamagedDataError, InputError
from storage.files import write_atomically
from storage.schema import (
    GROUP_METADATA,
    MANIFEST_FOLDER,
    Event,
    Schema,
    canonical_json,
    metadata_files,
    schema_from_metadata,
)
from storage.shard import ShardLayout, ShardWriter, event_key, longest_json
from storage.urls import local_folder

if TYPE_CHECKING:
    import xarray

ARRAYS = ("strain", "parameters", "optimal_snr", "psd")


@dataclass(frozen=True)
class Manifest:
    """What is known of a finished shard.

    Attributes:
        shard: Its number.
        first_event: Number of its first event.
        events: How many it holds.
        files: Length in bytes and SHA-256 of each of its files, by path within the data set.
        crc32c: Checksum of each event's stored strain.
        largest_snr_loss: The largest share of the SNR that the encoding took from one event.
        rejected: Draws thrown away, counted by reason.
    """

    shard: int
    first_event: int
    events: int
    files: Mapping[str, Mapping[str, Any]]
    crc32c: tuple[int, ...]
    largest_snr_loss: float
    rejected: Mapping[str, int]


def create_dataset(
    url: str | Path, schema: Schema, psd: Float[Array, "detector frequency"]
) -> Path:
    """Create an empty data set, or accept one that was created from the same facts.

    Args:
        url: The folder.
        schema: What the data set is.
        psd: One-sided PSD of each detector [1/Hz].

    Returns:
        The folder.

    Raises:
        InputError: The folder holds something else, or a data set of another configuration.
    """
    folder = local_folder(url)
    files = metadata_files(schema)
    files["psd/c/0/0"] = psd.astype("<f8").tobytes()
    if (folder / GROUP_METADATA).exists():
        _refuse_another_configuration(folder, files)
        return folder
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give the name of a folder to create")
    if folder.is_dir() and (other := _foreign_entry(folder, files)):
        raise InputError(
            f"{folder}: is not a data set but holds {other}; give a new or an empty folder"
        )
    for path in sorted(files, key=lambda path: path == GROUP_METADATA):  # the group last
        write_atomically(folder / path, files[path])
    return folder


def write_shard(folder: Path, schema: Schema, shard: int, events: Iterable[Event]) -> Manifest:
    """Write all files of one shard, its manifest last.

    Args:
        folder: The data set.
        schema: What the data set is.
        shard: Number of the shard.
        events: Its events, in order; consumed one by one.

    Raises:
        InputError: An event does not fit the encoding. No manifest is written.
    """
    layout = shard_layout(schema)
    table = np.full((schema.events_per_shard, len(schema.parameters)), np.nan, "<f8")
    snrs = np.full((schema.events_per_shard, len(schema.detectors)), np.nan, "<f8")
    losses, rejected = [0.0], Counter[str]()
    paths = shard_files(shard)
    with ShardWriter(folder / paths["strain"], layout) as writer:
        # Strict, so that too few or too many events leave no file behind.
        for row, (number, event) in enumerate(zip(schema.events_of(shard), events, strict=True)):
            assert event.number == number, f"event {event.number} came in place of {number}"
            codes = schema.encoding.encode(event.strain, event.number)
            losses.append(schema.encoding.snr_loss(event.strain, codes, schema.noisy))
            table[row], snrs[row] = event.parameters, event.optimal_snr
            rejected.update(event.rejected)
            writer.add(event_key(event.number), codes, event_facts(schema, event))
        written = {paths["strain"]: writer.finish()}
    for name, values in (("parameters", table), ("optimal_snr", snrs)):
        written[paths[name]] = write_atomically(folder / paths[name], values.tobytes())
    manifest = Manifest(
        shard=shard,
        first_event=schema.events_of(shard).start,
        events=len(schema.events_of(shard)),
        files={
            path: {"bytes": length, "sha256": digest} for path, (length, digest) in written.items()
        },
        crc32c=tuple(writer.crc32c),
        largest_snr_loss=max(losses),
        rejected=dict(sorted(rejected.items())),
    )
    write_atomically(_manifest_path(folder, shard), canonical_json(vars(manifest)))
    return manifest


def read_schema(url: str | Path) -> Schema:
    """Read what a data set is.

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: Its metadata were altered.
    """
    folder = local_folder(url)
    if not (folder / GROUP_METADATA).is_file():
        raise InputError(
            f"{folder}: no data set there (no {GROUP_METADATA}); give a folder made by "
            "`strainflow simulate`"
        )
    documents = {GROUP_METADATA: _read_json(folder / GROUP_METADATA)}
    if "strainflow" in documents[GROUP_METADATA].get("attributes", {}):
        for name in ARRAYS:
            documents[f"{name}/zarr.json"] = _read_json(folder / name / "zarr.json")
    else:
        documents |= {f"{name}/zarr.json": {} for name in ARRAYS}
    try:
        return schema_from_metadata(documents, str(folder))
    except (AttributeError, KeyError, TypeError) as error:
        raise DamagedDataError(
            f"{folder}: its metadata were altered ({error} is missing or wrong)"
        ) from None


def read_manifests(folder: Path, schema: Schema) -> dict[int, Manifest]:
    """Read the manifest of every finished shard, by its number.

    Raises:
        DamagedDataError: One of them was altered.
    """
    manifests = {}
    for shard in finished_shards(folder, schema):
        path = _manifest_path(folder, shard)
        try:
            content = _read_json(path)
            manifests[shard] = Manifest(**content | {"crc32c": tuple(content["crc32c"])})
        except (DamagedDataError, KeyError, TypeError):
            raise DamagedDataError(
                f"{path}: is not a manifest any more, so it was altered; delete it and run the "
                "same `strainflow simulate` again to restore its shard"
            ) from None
    return manifests


def finished_shards(folder: Path, schema: Schema) -> list[int]:
    """The numbers of the shards that have a manifest, in order."""
    present = {path.stem for path in (folder / MANIFEST_FOLDER).glob("*.json")}
    return [shard for shard in range(schema.shards) if f"{shard:06d}" in present]


def remove_partial_files(folder: Path) -> None:
    """Remove what writers that died left behind. Only while nothing else writes to the folder."""
    for path in folder.rglob("*.partial"):
        path.unlink(missing_ok=True)


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
                f"{_manifest_path(folder, manifest.shard)} and run the same `strainflow simulate` "
                "again to restore it"
            )
    return None


def open_dataset(url: str | Path) -> "xarray.Dataset":
    """Open a data set with labels, decoded to sigma, reading nothing until it is asked for.

    Returns:
        Variables `strain` (event, detector, time) [sigma], `parameters` (event, parameter),
        `optimal_snr` (event, detector) and `psd` (detector, frequency) [1/Hz].

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: It is not complete.
    """
    import xarray  # takes a second, and workers that only write do not need it

    folder = local_folder(url)
    schema = read_schema(folder)
    require_complete(folder, schema)
    dataset = xarray.open_zarr(folder, chunks=None, mask_and_scale=False)
    attributes = dataset["strain"].attrs
    if "scale_factor" in attributes:  # a float in JSON, with which xarray would decode to float64
        attributes["scale_factor"] = np.float32(attributes["scale_factor"])
    return xarray.decode_cf(dataset).assign_coords(
        event=np.arange(schema.events),
        detector=list(schema.detectors),
        time=np.arange(schema.samples) / schema.sample_rate,
        parameter=list(schema.parameter_names),
        frequency=np.arange(schema.frequencies) * schema.frequency_step,
    )


def read_parameters(url: str | Path) -> Float[Array, "event parameter"]:
    """Read the whole table of parameters, in the order of the schema's parameters.

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: It is not complete.
    """
    return _read_table(url, "parameters")


def read_optimal_snr(url: str | Path) -> Float[Array, "event detector"]:
    """Read the optimal SNR of every event in each detector.

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: It is not complete.
    """
    return _read_table(url, "optimal_snr")


def shard_layout(schema: Schema) -> ShardLayout:
    """Where everything lies in a shard of this data set."""
    return ShardLayout(
        slots=schema.events_per_shard,
        shape=schema.strain_shape,
        dtype=schema.encoding.dtype,
        json_room=longest_json(event_facts(schema, _widest_event(schema))),
    )


def shard_files(shard: int) -> dict[str, str]:
    """The files of a shard by array, as paths within the data set."""
    return {
        "strain": f"strain/c/{shard}/0/0",
        "parameters": f"parameters/c/{shard}/0",
        "optimal_snr": f"optimal_snr/c/{shard}/0",
    }


def event_facts(schema: Schema, event: Event) -> dict[str, Any]:
    """What stands in an event's JSON: all that a reader who has just the tar needs."""
    return {
        "event": event.number,
        "detectors": list(schema.detectors),
        "sample_rate": schema.sample_rate,
        "scale_factor": schema.encoding.scale_factor or 1.0,
        "parameters": dict(
            zip(schema.parameter_names, (float(value) for value in event.parameters), strict=True)
        ),
        "optimal_snr": [float(value) for value in event.optimal_snr],
    }


def _read_table(url: str | Path, name: str) -> Float[Array, "event column"]:
    folder = local_folder(url)
    schema = read_schema(folder)
    require_complete(folder, schema)
    chunks = [
        np.fromfile(folder / shard_files(shard)[name], "<f8").reshape(schema.events_per_shard, -1)
        for shard in range(schema.shards)
    ]
    table: Array = np.concatenate(chunks)[: schema.events]
    return table


def _widest_event(schema: Schema) -> Event:
    return Event(
        number=schema.events,
        strain=np.zeros((0, 0)),
        parameters=np.zeros(len(schema.parameters)),
        optimal_snr=np.zeros(len(schema.detectors)),
        rejected={},
    )


def _manifest_path(folder: Path, shard: int) -> Path:
    return folder / MANIFEST_FOLDER / f"{shard:06d}.json"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedDataError(f"{path}: is missing") from None
    except ValueError:
        raise DamagedDataError(f"{path}: is not valid JSON, so it was altered") from None
    if not isinstance(content, dict):
        raise DamagedDataError(f"{path}: is not a JSON object, so it was altered")
    return content


def _foreign_entry(folder: Path, files: Mapping[str, bytes]) -> str | None:
    """The first entry of a folder that creating a data set could not have left there."""
    ours = {path.split("/")[0] for path in files} | {GROUP_METADATA + ".partial"}
    return next((path.name for path in sorted(folder.iterdir()) if path.name not in ours), None)


def _refuse_another_configuration(folder: Path, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        present = folder / path
        if present.is_file() and present.read_bytes() == content:
            continue
        difference = path
        if path.endswith(".json") and present.is_file():
            difference = _first_difference(_read_json(present), json.loads(content))
        raise InputError(
            f"{folder}: holds a data set of another configuration ({difference}); give another "
            "--out, or the configuration that it was made with"
        )


def _first_difference(there: object, wanted: object, name: str = "") -> str:
    """Say where two JSON documents differ first."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        for key in sorted(there.keys() | wanted.keys()):
            if there.get(key) != wanted.get(key):
                return _first_difference(there.get(key), wanted.get(key), f"{name}.{key}")
    shortened = [
        text if len(text) < 80 else text[:77] + "..." for text in map(repr, (there, wanted))
    ]
    label = name
    for prefix in (".attributes.strainflow.", ".consolidated_metadata.metadata.", "."):
        label = label.removeprefix(prefix)
    return f"{label}: {shortened[0]} there, {shortened[1]} asked for"
