"""The facts of a data set as Zarr v3 metadata, and back.

`storage/FORMAT.md` is the specification for readers in other languages.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxtyping import Float

from storage.arrays import Array
from storage.documents import canonical_json
from storage.encodings import Encoding, encoding_named
from storage.errors import DamagedDataError, InputError
from storage.schema import GROUP_COPY, GROUP_METADATA, MANIFEST_FOLDER, PSD_CHUNK, Parameter, Schema
from storage.values import names, number, positive

FORMAT_VERSION = 1

_CHILD = re.compile(r"\w+")


def dataset_files(schema: Schema, psd: Float[Array, "detector frequency"]) -> dict[str, bytes]:
    """Every file of a data set that holds no event, by its path within it; the group's is last.

    Written here and not by zarr-python, so that the bytes do not change with its version. The
    group's metadata hold all the others and the PSD's digest: they alone say what the data set is.
    """
    psd_bytes = psd.astype("<f8").tobytes()
    group = group_of(schema, hashlib.sha256(psd_bytes).hexdigest())
    children = group["consolidated_metadata"]["metadata"]
    documents = {f"{name}/zarr.json": document for name, document in children.items()}
    documents[GROUP_METADATA] = group
    files = {path: canonical_json(document) for path, document in documents.items()}
    return {PSD_CHUNK: psd_bytes, GROUP_COPY: files[GROUP_METADATA], **files}


def group_of(schema: Schema, psd_digest: str) -> dict[str, Any]:
    """The group's metadata.

    Args:
        schema: What the data set is.
        psd_digest: SHA-256 of the PSD's bytes.
    """
    (series, samples), detectors = schema.strain_shape, len(schema.detectors)
    per_shard, kind = schema.events_per_shard, schema.kind_of_series
    strain_attributes: dict[str, Any] = {
        "units": "1",
        "long_name": "whitened strain in units of sigma",
        "sample_rate": schema.sample_rate,
        f"{kind}s": list(schema.series),
    }
    if schema.encoding.scale_factor is not None:
        strain_attributes["scale_factor"] = schema.encoding.scale_factor
        strain_attributes["_FillValue"] = schema.encoding.fill_value
    children: dict[str, dict[str, Any]] = {
        # A Zarr group, so that Zarr readers that list the folder know what it is.
        MANIFEST_FOLDER: {"zarr_format": 3, "node_type": "group"},
        "strain": _array(
            (schema.events, series, samples),
            (per_shard, series, samples),
            ("event", kind, "time"),
            schema.encoding.dtype.name,
            schema.encoding.fill_value,
            strain_attributes,
            inner_chunk=(1, series, samples),
            encoding=schema.encoding,
        ),
        "parameters": _array(
            (schema.events, len(schema.parameters)),
            (per_shard, len(schema.parameters)),
            ("event", "parameter"),
            "float64",
            "NaN",
            {"parameters": [vars(parameter) for parameter in schema.parameters]},
        ),
        "optimal_snr": _array(
            (schema.events, detectors),
            (per_shard, detectors),
            ("event", "detector"),
            "float64",
            "NaN",
            {"long_name": "optimal signal-to-noise ratio", "detectors": list(schema.detectors)},
        ),
        "psd": _array(
            (detectors, schema.frequencies),
            (detectors, schema.frequencies),
            ("detector", "frequency"),
            "float64",
            "NaN",
            {
                "units": "1/Hz",
                "long_name": "one-sided power spectral density",
                "frequency_step": schema.frequency_step,
                "detectors": list(schema.detectors),
                "sha256": psd_digest,
            },
        ),
    }
    ours: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "encoding": schema.encoding.name,
        "events": schema.events,
        "events_per_shard": per_shard,
        "noisy": schema.noisy,
        **schema.provenance,
    }
    if schema.encoding.max_snr_loss is not None:
        ours["max_snr_loss"] = schema.encoding.max_snr_loss
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"strainflow": ours},
        # With this, xarray and zarr-python read one file in place of listing the folder.
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": children},
    }


def children_files(group: Mapping[str, Any]) -> dict[str, bytes]:
    """The metadata files of the group's arrays, as the group's own metadata repeat them."""
    children = group["consolidated_metadata"]["metadata"]
    return {f"{name}/zarr.json": canonical_json(document) for name, document in children.items()}


def schema_from_metadata(group: Mapping[str, Any], where: str) -> Schema:
    """Read a schema back from the group's metadata, which repeat those of its arrays.

    Args:
        group: The parsed `zarr.json` of the group.
        where: The data set, for messages.

    Raises:
        InputError: It is no data set of ours, or of a format that this version does not know.
        DamagedDataError: Something in it is missing or impossible.
    """
    ours = group.get("attributes")
    ours = ours.get("strainflow") if isinstance(ours, dict) else None
    version = ours.get("format_version") if isinstance(ours, dict) else None
    if ours is None or version is None:
        raise InputError(
            f"{where}: a Zarr group, but none that strainflow wrote (zarr.json has no strainflow "
            "attributes); give a folder made by `strainflow simulate`"
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise InputError(f"{where}: {_refusal_of(version)}")
    try:
        return _schema_of(dict(ours), group["consolidated_metadata"]["metadata"])
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, InputError):  # an encoding that is not known
            raise
        raise DamagedDataError(
            f"{where}: its metadata were altered ({error} is missing or wrong); "
            "`strainflow repair` restores them from their copy"
        ) from None


def _refusal_of(version: object) -> str:
    """Why a format version cannot be read, and what to do."""
    if type(version) is int and version > FORMAT_VERSION:
        return (
            f"its format version {version} is newer than this strainflow, which reads version "
            f"{FORMAT_VERSION}; install a newer strainflow"
        )
    return (
        f"its format version {version!r} is none that strainflow ever wrote (the first is 1), so "
        "its zarr.json was altered; `strainflow repair` restores it from its copy"
    )


def _schema_of(ours: dict[str, Any], children: Mapping[str, Any]) -> Schema:
    if not all(map(_CHILD.fullmatch, children)):  # they become paths
        raise ValueError("the name of an array")
    strain, parameters, psd = (children[name] for name in ("strain", "parameters", "psd"))
    scale = strain["attributes"].get("scale_factor")
    loss = ours.pop("max_snr_loss", None)
    encoding = replace(
        encoding_named(ours.pop("encoding")),
        scale_factor=scale if scale is None else positive(scale, float),
        max_snr_loss=loss if loss is None else number(loss),
    )
    of_strain, polarisations = strain["attributes"], tuple[str, ...]()
    if "polarisations" in of_strain:
        polarisations = names(of_strain, "polarisations")
    detectors = names(psd["attributes"] if polarisations else of_strain, "detectors")
    if not parameters["attributes"]["parameters"]:
        raise ValueError("parameters")
    if (encoding.scale_factor is None) != (encoding.dtype.kind == "f"):
        raise ValueError("scale_factor")
    del ours["format_version"]
    schema = Schema(
        events=positive(ours.pop("events"), int),
        events_per_shard=positive(ours.pop("events_per_shard"), int),
        detectors=detectors,
        samples=positive(strain["shape"][2], int),
        sample_rate=positive(strain["attributes"]["sample_rate"], float),
        encoding=encoding,
        noisy=bool(ours.pop("noisy")),
        parameters=tuple(map(_parameter, parameters["attributes"]["parameters"])),
        frequencies=positive(psd["shape"][1], int),
        frequency_step=positive(psd["attributes"]["frequency_step"], float),
        provenance=ours,
        polarisations=polarisations,
    )
    _refuse_other_shapes(schema, children)
    _refuse_provenance(schema)
    return schema


def _refuse_other_shapes(schema: Schema, children: Mapping[str, Any]) -> None:
    """Refuse arrays that are not as large, cut and stored as the data set's facts make them.

    So that a number that was altered is known before any memory is taken for it.
    """
    if schema.event_bytes >= 2**62:
        raise ValueError("shape")
    for name, wanted in group_of(schema, "")["consolidated_metadata"]["metadata"].items():
        for key in ("shape", "chunk_grid", "data_type", "codecs"):
            there = children[name].get(key)
            if key in wanted and without_settings(there) != without_settings(wanted[key]):
                raise ValueError(f"the {key} of {name}")


def without_settings(value: object) -> object:
    """The same without those of Blosc, which only its writer needs and a later one may change."""
    if isinstance(value, list):
        return [without_settings(item) for item in value]
    if isinstance(value, dict):
        if value.get("name") == "blosc" and isinstance(value.get("configuration"), dict):
            settings = value["configuration"].items()
            return {"name": "blosc", "configuration": dict(map(_without_choice, settings))}
        return {key: without_settings(item) for key, item in value.items()}
    return value


def _without_choice(setting: tuple[str, object]) -> tuple[str, object]:
    """A setting of Blosc; those that are free and possible are all the same."""
    name, value = setting
    is_free = {
        "cname": value in ("blosclz", "lz4", "lz4hc", "zlib", "zstd"),
        "shuffle": value in ("noshuffle", "shuffle", "bitshuffle"),
        "clevel": type(value) is int and 0 <= value <= 9,
        "blocksize": type(value) is int and 0 <= value < 2**31,
    }
    return name, "free" if is_free.get(name) else value


def _refuse_provenance(schema: Schema) -> None:
    """Refuse what is told of the data set's making in another form than we read it in."""
    if schema.polarisations and schema.noisy:  # noise is a detector's
        raise ValueError("noisy")
    configuration = schema.provenance.get("configuration", {})
    sections = (
        configuration,
        configuration.get("waveform", {}),
        schema.provenance.get("versions", {}),
    )
    if not all(isinstance(section, dict) for section in sections):
        raise TypeError("provenance")
    if "frames" in schema.provenance:
        _refuse_frames(schema)
    for encoding in schema.encodings_before:
        if encoding_named(encoding.name).compressed != encoding.compressed:
            raise ValueError("recoded_from")
        if (encoding.scale_factor is None) != (encoding.dtype.kind == "f"):
            raise ValueError("recoded_from")
        if encoding.scale_factor is not None:
            positive(encoding.scale_factor, float)
        if encoding.max_snr_loss is not None:
            number(encoding.max_snr_loss)

    for source in schema.sources:
        if source.largest_snr_loss is not None:
            number(source.largest_snr_loss)


def _refuse_frames(schema: Schema) -> None:
    """Refuse what is told of frames in another form than we read it in."""
    frames = schema.provenance["frames"]
    if not isinstance(frames["files"], dict) or not isinstance(frames["channels"], list):
        raise TypeError("frames")
    if len(frames["events"]) != schema.events or not isinstance(frames["psd"], str):
        raise ValueError("frames")
    for moment in frames["events"]:
        for name in ("gps", "start", "time_shift", "ra_shift"):
            number(moment[name])
        if not isinstance(moment["geocent_time"], str):
            raise TypeError("frames")


def _parameter(column: Mapping[str, Any]) -> Parameter:
    parameter = Parameter(**column)
    texts = (parameter.name, parameter.unit, parameter.prior)
    bounds = (parameter.minimum, parameter.maximum)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("text of a parameter")
    if not all(bound is None or isinstance(bound, int | float) for bound in bounds):
        raise TypeError("bound of a parameter")
    return parameter


def _array(
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dimensions: tuple[str, ...],
    data_type: str,
    fill_value: int | str,
    attributes: Mapping[str, Any],
    inner_chunk: tuple[int, ...] | None = None,
    encoding: Encoding | None = None,
) -> dict[str, Any]:
    """The metadata of one Zarr v3 array; sharded where an inner chunk is given."""
    little_endian: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    if data_type == "int8":
        little_endian = {"name": "bytes"}
    codecs: list[dict[str, Any]] = [little_endian]
    if inner_chunk is not None:
        inner_codecs = [little_endian]
        if encoding is not None and encoding.blosc is not None:
            size = encoding.dtype.itemsize
            settings = {"typesize": size, "blocksize": math.prod(inner_chunk) * size}
            inner_codecs.append(
                {"name": "blosc", "configuration": {**vars(encoding.blosc), **settings}}
            )
        codecs = [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": list(inner_chunk),
                    "codecs": inner_codecs,
                    "index_codecs": [
                        {"name": "bytes", "configuration": {"endian": "little"}},
                        {"name": "crc32c"},
                    ],
                    "index_location": "end",
                },
            }
        ]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": codecs,
        "attributes": attributes,
        "dimension_names": list(dimensions),
    }
