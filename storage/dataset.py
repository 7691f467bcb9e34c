"""A data set on disk: created once, filled shard by shard, complete when every manifest is there.

A shard's manifest is written last, so that it marks the shard as complete. Nothing in these files
depends on when, where or in what order they were written.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blake3
import numpy as np
from jaxtyping import Float, Int64

from storage.arrays import Array
from storage.documents import parse_json
from storage.errors import DamagedDataError, InputError, Unreadable
from storage.local import LocalStore
from storage.manifest import (
    finished_shards,
    has_finished_shards,
    read_manifest,
    require_complete,
    require_sound,
)
from storage.metadata import dataset_files, group_of, schema_from_metadata, without_settings
from storage.schema import (
    GROUP_COPY,
    GROUP_METADATA,
    PSD_CHUNK,
    Schema,
    is_file_of_ours,
    shard_files,
)
from storage.urls import Store, store_of

if TYPE_CHECKING:
    import xarray

SHARD_ARRAYS = ("strain", "parameters", "optimal_snr")
ARRAYS = (*SHARD_ARRAYS, "psd")


def create_dataset(
    url: str | Path | Store, schema: Schema, psd: Float[Array, "detector frequency"]
) -> Store:
    """Create an empty data set, or accept one that was created from the same facts.

    One without a finished shard holds nothing that could be lost: it is created anew.

    Args:
        url: Where.
        schema: What the data set is.
        psd: One-sided PSD of each detector [1/Hz].

    Raises:
        InputError: The place holds something else, or a data set of another configuration.
    """
    store = store_of(url)
    files = dataset_files(schema, psd)
    if _is_of_finished_shards(store, schema, files[GROUP_METADATA]):
        for path, content in files.items():  # those that were lost or altered since
            (found,) = store.contents([path])
            if found != content:
                store.write(path, content)
        return store
    if store.exists(GROUP_METADATA) and not _holds_nothing_yet(store):
        _refuse_another_configuration(store, files[GROUP_METADATA])
    if isinstance(store, LocalStore) and store.folder.is_file():
        raise InputError(f"{store.url}: is a file; give the name of a folder to create")
    if other := _foreign_entry(store, files):
        raise InputError(
            f"{store.url}: is not a data set but holds {other}; give a new or an empty folder"
        )
    if store.exists(GROUP_METADATA):  # of a run that finished no shard
        for name in SHARD_ARRAYS:
            for path in filter(is_file_of_ours, list(store.files(f"{name}/c"))):
                store.remove(path)
    elif has_finished_shards(store):
        raise InputError(
            f"{store.url}: holds finished shards but no {GROUP_METADATA}; `strainflow repair` "
            "restores it, or give another place"
        )
    for path, content in files.items():
        store.write(path, content)
    return store


def read_schema(url: str | Path | Store) -> Schema:
    """Read what a data set is.

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: Its metadata were altered.
    """
    store = store_of(url)
    return schema_from_metadata(read_group(store), store.url)


def dataset_digest(url: str | Path | Store) -> str:
    """SHA-256 of the group's metadata, which say what the data set is.

    Raises:
        InputError: There is no data set of ours.
    """
    read_schema(url)
    return metadata_digest(store_of(url))


def metadata_digest(store: Store) -> str:
    """SHA-256 of the group's metadata, which were read before and found to be ours."""
    return hashlib.sha256(store.read(GROUP_METADATA)).hexdigest()


def read_psd(url: str | Path | Store) -> Float[Array, "detector frequency"]:
    """Read the one-sided PSD of each detector [1/Hz].

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: The PSD is missing, cannot be read, or is not the one that the metadata
            record.
    """
    store = store_of(url)
    schema, (content,) = read_schema(store), store.contents([PSD_CHUNK])
    if isinstance(content, Unreadable):
        raise DamagedDataError(
            f"{store.where(PSD_CHUNK)}: {content}; `strainflow repair {store.url}` restores it"
        )
    if content is None or not is_recorded_psd(content, read_group(store)):
        raise DamagedDataError(
            f"{store.where(PSD_CHUNK)}: is missing or was altered (it has not the SHA-256 that the "
            "metadata record); `strainflow repair` restores it"
        )
    if len(content) != 8 * len(schema.detectors) * schema.frequencies:
        raise DamagedDataError(
            f"{store.where(GROUP_METADATA)}: was altered (its PSD has another shape than the "
            "file's bytes); `strainflow repair` restores it"
        )
    return np.frombuffer(content, "<f8").reshape(len(schema.detectors), schema.frequencies)


def is_recorded_psd(content: bytes, group: Mapping[str, Any]) -> bool:
    """Whether these are the bytes of the PSD of a group with these metadata."""
    try:
        recorded = group["consolidated_metadata"]["metadata"]["psd"]["attributes"]["sha256"]
    except (KeyError, TypeError):
        return False
    return bool(hashlib.sha256(content).hexdigest() == recorded)


def open_dataset(url: str | Path | Store, growing: bool = False) -> "xarray.Dataset":
    """Open a data set with labels, decoded to sigma, reading nothing until it is asked for.

    Args:
        url: The data set.
        growing: Whether shards may be missing: what is opened are then the events of the shards
            that are finished now, and the coordinate `event` says which.

    Returns:
        Variables `strain` (event, detector, time) [sigma], `parameters` (event, parameter),
        `optimal_snr` (event, detector) and `psd` (detector, frequency) [1/Hz]; where a data set
        holds polarisations, `strain` is (event, polarisation, time).

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: It is not complete.
    """
    import xarray  # takes a second, and workers that only write do not need it

    store = store_of(url)
    schema = read_schema(store)
    shards = require_sound(store, schema, growing)
    _refuse_what_readers_take_otherwise(store, schema)
    dataset = xarray.open_zarr(store.url, chunks=None, mask_and_scale=False)
    attributes = dataset["strain"].attrs
    if "scale_factor" in attributes:  # a float in JSON, with which xarray would decode to float64
        attributes["scale_factor"] = np.float32(attributes["scale_factor"])
    if len(shards) < schema.shards:
        dataset = dataset.isel(event=events_of_shards(schema, shards))
    labelled = xarray.decode_cf(dataset).assign_coords(
        event=events_of_shards(schema, shards),
        detector=list(schema.detectors),
        time=np.arange(schema.samples) / schema.sample_rate,
        parameter=list(schema.parameter_names),
        frequency=np.arange(schema.frequencies) * schema.frequency_step,
    )
    return labelled.assign_coords({schema.kind_of_series: list(schema.series)})


def _refuse_what_readers_take_otherwise(store: Store, schema: Schema) -> None:
    """Refuse metadata in which something was altered that zarr or xarray go by, and we do not.

    Raises:
        DamagedDataError: They are not those of such a data set.
    """
    group = read_group(store)
    psd = group["consolidated_metadata"]["metadata"]["psd"]["attributes"].get("sha256")
    wanted = {**group_of(schema, psd), "attributes": group["attributes"]}
    if without_settings(group) != without_settings(wanted):
        raise DamagedDataError(
            f"{store.where(GROUP_METADATA)}: its metadata were altered "
            f"({_first_difference(group, wanted)}); `strainflow repair` restores them"
        )


def events_of_shards(schema: Schema, shards: list[int]) -> Int64[Array, "event"]:
    """The numbers of the events in some shards, in order."""
    return np.concatenate([np.asarray(schema.events_of(shard)) for shard in shards])


def read_parameters(url: str | Path | Store) -> Float[Array, "event parameter"]:
    """Read the whole table of parameters, in the order of the schema's parameters.

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: It is not complete.
    """
    return _read_table(url, "parameters")


def read_optimal_snr(url: str | Path | Store) -> Float[Array, "event detector"]:
    """Read the optimal SNR of every event in each detector.

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: It is not complete.
    """
    return _read_table(url, "optimal_snr")


def _read_table(url: str | Path | Store, name: str) -> Float[Array, "event column"]:
    store = store_of(url)
    schema = read_schema(store)
    require_complete(store, schema)
    paths = [shard_files(shard)[name] for shard in range(schema.shards)]
    chunks = [np.frombuffer(content or b"", "<f8") for content in store.read_each(paths)]
    table: Array = np.concatenate(chunks).reshape(schema.shards * schema.events_per_shard, -1)
    return table[: schema.events]


def read_group(url: str | Path | Store) -> dict[str, Any]:
    """Read the group's metadata as they are.

    Raises:
        InputError: There are none.
        DamagedDataError: They cannot be read, or are no JSON.
    """
    store = store_of(url)
    (content,) = store.contents([GROUP_METADATA])
    if content is None and not (has_finished_shards(store) and store.exists(GROUP_COPY)):
        raise InputError(
            f"{store.url}: no data set there (no {GROUP_METADATA}); give a folder made by "
            "`strainflow simulate`"
        )
    try:
        return parse_json(content, store.where(GROUP_METADATA))
    except DamagedDataError as error:
        raise DamagedDataError(
            f"{error}; `strainflow repair {store.url}` restores it from its copy"
        ) from None


def _holds_nothing_yet(store: Store) -> bool:
    """Whether there is a data set of ours without a finished shard."""
    attributes = read_group(store).get("attributes")
    return (
        isinstance(attributes, dict)
        and "strainflow" in attributes
        and not has_finished_shards(store)
    )


def _is_of_finished_shards(store: Store, schema: Schema, wanted: bytes) -> bool:
    """Whether there are finished shards, and group metadata with these bytes are theirs."""
    shards = finished_shards(store, schema)
    if not shards:
        return False
    recorded = recorded_identities(store, schema, shards)
    if (first := next(recorded, None)) is not None:
        identity = blake3.blake3(wanted).hexdigest()
        return identity in chain([first], recorded)  # some may be of another data set
    return list(store.contents([GROUP_METADATA])) == [wanted]


def recorded_identities(store: Store, schema: Schema, shards: Iterable[int]) -> Iterator[str]:
    """The digests of the group's metadata that manifests record, those that can be read."""
    for shard in shards:
        try:
            dataset = read_manifest(store, schema, shard).dataset
        except DamagedDataError:
            continue
        if dataset:
            yield dataset


def _foreign_entry(store: Store, files: Mapping[str, bytes]) -> str | None:
    """The first entry of a place that creating a data set could not have left there."""
    ours = {path.split("/")[0] for path in files} | {GROUP_METADATA + ".partial"}
    return next((name for name in sorted(store.names("")) if name not in ours), None)


def _refuse_another_configuration(store: Store, wanted: bytes) -> None:
    difference = _first_difference(read_group(store), parse_json(wanted, ""))
    raise InputError(
        f"{store.url}: holds a data set of another configuration ({difference}); give another "
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
