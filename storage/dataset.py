"""A data set on disk: created once, filled shard by shard, complete when every manifest is there.

A shard's manifest is written last, so that it marks the shard as complete. Nothing in these files
depends on when, where or in what order they were written.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from storage.arrays import Array
from storage.errors import DamagedDataError, InputError
from storage.files import read_json, write_atomically
from storage.manifest import has_finished_shards, require_complete
from storage.schema import (
    GROUP_METADATA,
    PSD_CHUNK,
    Schema,
    dataset_files,
    schema_from_metadata,
    shard_files,
)
from storage.urls import local_folder

if TYPE_CHECKING:
    import xarray

SHARD_ARRAYS = ("strain", "parameters", "optimal_snr")
ARRAYS = (*SHARD_ARRAYS, "psd")


def create_dataset(
    url: str | Path, schema: Schema, psd: Float[Array, "detector frequency"]
) -> Path:
    """Create an empty data set, or accept one that was created from the same facts.

    One without a finished shard holds nothing that could be lost: it is created anew.

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
    files = dataset_files(schema, psd)
    if (folder / GROUP_METADATA).exists() and not _holds_nothing_yet(folder):
        _refuse_another_configuration(folder, files[GROUP_METADATA])
        for path, content in files.items():  # those that were lost or altered since
            if not (folder / path).is_file() or (folder / path).read_bytes() != content:
                write_atomically(folder / path, content)
        return folder
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give the name of a folder to create")
    if folder.is_dir() and (other := _foreign_entry(folder, files)):
        raise InputError(
            f"{folder}: is not a data set but holds {other}; give a new or an empty folder"
        )
    if (folder / GROUP_METADATA).exists():  # of a run that finished no shard
        for name in SHARD_ARRAYS:
            shutil.rmtree(folder / name / "c", ignore_errors=True)
    elif has_finished_shards(folder):
        raise InputError(
            f"{folder}: holds finished shards but no {GROUP_METADATA}; put that file back, or give "
            "another --out"
        )
    for path, content in files.items():
        write_atomically(folder / path, content)
    return folder


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
    documents = {GROUP_METADATA: read_json(folder / GROUP_METADATA)}
    if "strainflow" in documents[GROUP_METADATA].get("attributes", {}):
        for name in ARRAYS:
            documents[f"{name}/zarr.json"] = read_json(folder / name / "zarr.json")
    else:
        documents |= {f"{name}/zarr.json": {} for name in ARRAYS}
    try:
        return schema_from_metadata(documents, str(folder))
    except (AttributeError, KeyError, TypeError) as error:
        raise DamagedDataError(
            f"{folder}: its metadata were altered ({error} is missing or wrong)"
        ) from None


def dataset_digest(url: str | Path) -> str:
    """SHA-256 of the group's metadata, which say what the data set is.

    Raises:
        InputError: There is no data set of ours.
    """
    read_schema(url)
    return hashlib.sha256((local_folder(url) / GROUP_METADATA).read_bytes()).hexdigest()


def read_psd(url: str | Path) -> Float[Array, "detector frequency"]:
    """Read the one-sided PSD of each detector [1/Hz].

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: The PSD is missing, or not the one that the metadata record.
    """
    folder = local_folder(url)
    schema = read_schema(folder)
    path = folder / PSD_CHUNK
    content = path.read_bytes() if path.is_file() else b""
    recorded = read_json(folder / "psd/zarr.json")["attributes"]["sha256"]
    if hashlib.sha256(content).hexdigest() != recorded:
        raise DamagedDataError(
            f"{path}: is missing or was altered (its SHA-256 is not {recorded[:12]}...); run the "
            "same `strainflow simulate` again to restore it"
        )
    return np.frombuffer(content, "<f8").reshape(len(schema.detectors), schema.frequencies)


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


def _holds_nothing_yet(folder: Path) -> bool:
    """Whether a folder is a data set of ours without a finished shard."""
    attributes = read_json(folder / GROUP_METADATA).get("attributes", {})
    return "strainflow" in attributes and not has_finished_shards(folder)


def _foreign_entry(folder: Path, files: Mapping[str, bytes]) -> str | None:
    """The first entry of a folder that creating a data set could not have left there."""
    ours = {path.split("/")[0] for path in files} | {GROUP_METADATA + ".partial"}
    return next((path.name for path in sorted(folder.iterdir()) if path.name not in ours), None)


def _refuse_another_configuration(folder: Path, wanted: bytes) -> None:
    path = folder / GROUP_METADATA
    if path.read_bytes() != wanted:
        difference = _first_difference(read_json(path), json.loads(wanted))
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
