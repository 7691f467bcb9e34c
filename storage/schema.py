"""What a data set is: the facts that every shard shares, and their form as Zarr v3 metadata.

`storage/FORMAT.md` is the specification for readers in other languages.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float

from storage.arrays import Array
from storage.encodings import Encoding, encoding_named
from storage.errors import InputError

FORMAT_VERSION = 1

# Within the data set's folder.
GROUP_METADATA = "zarr.json"
PSD_CHUNK = "psd/c/0/0"
MANIFEST_FOLDER = "manifest"


@dataclass(frozen=True)
class Parameter:
    """One column of the table of parameters.

    Attributes:
        name: bilby's name.
        unit: Its unit, empty for none.
        prior: The distribution it was drawn from, as in a bilby prior file.
        minimum: Lower end of the prior's support, None where it has none.
        maximum: Upper end of the prior's support, None where it has none.
    """

    name: str
    unit: str
    prior: str
    minimum: float | None
    maximum: float | None

    @property
    def fixed(self) -> bool:
        """Whether every event has the same value."""
        return self.minimum is not None and self.minimum == self.maximum


@dataclass(frozen=True)
class Schema:
    """All that is known of a data set before its first event.

    Attributes:
        events: Number of events.
        events_per_shard: Events in a shard (the last may hold fewer).
        detectors: Names of the detectors, in the order of the strain's second axis.
        samples: Time samples of an event in each detector.
        sample_rate: [Hz].
        encoding: How strain is stored.
        noisy: Whether the strain holds noise, or signals alone.
        parameters: The columns of the table of parameters.
        frequencies: Number of bins of the PSDs.
        frequency_step: Spacing of the bins of the PSDs [Hz].
        provenance: Whatever else is to be recorded (configuration, seed, geometry, versions).
    """

    events: int
    events_per_shard: int
    detectors: tuple[str, ...]
    samples: int
    sample_rate: float
    encoding: Encoding
    noisy: bool
    parameters: tuple[Parameter, ...]
    frequencies: int
    frequency_step: float
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.events // self.events_per_shard)

    @property
    def strain_shape(self) -> tuple[int, int]:
        """Shape of one event's strain, (detector, time)."""
        return len(self.detectors), self.samples

    @property
    def event_bytes(self) -> int:
        """Bytes of one event's strain."""
        return len(self.detectors) * self.samples * self.encoding.dtype.itemsize

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of their columns."""
        return tuple(parameter.name for parameter in self.parameters)

    def events_of(self, shard: int) -> range:
        """The numbers of the events in a shard."""
        first = shard * self.events_per_shard
        return range(first, min(first + self.events_per_shard, self.events))


@dataclass(frozen=True)
class Event:
    """One simulated event on its way to the disk.

    Attributes:
        number: Its number in the data set.
        strain: Whitened strain [sigma].
        parameters: In the order of the schema's parameters.
        optimal_snr: Optimal SNR in each detector.
        rejected: Draws thrown away before this one, counted by reason.
    """

    number: int
    strain: Float[Array, "detector time"]
    parameters: Float[Array, "parameter"]
    optimal_snr: Float[Array, "detector"]
    rejected: Mapping[str, int]


def dataset_files(schema: Schema, psd: Float[Array, "detector frequency"]) -> dict[str, bytes]:
    """Every file of a data set that holds no event, by its path within it; the group's is last.

    Written here and not by zarr-python, so that the bytes do not change with its version. The
    group's metadata hold all the others and the PSD's digest: they alone say what the data set is.
    """
    detectors, samples = schema.strain_shape
    psd_bytes = psd.astype("<f8").tobytes()
    per_shard = schema.events_per_shard
    strain_attributes: dict[str, Any] = {
        "units": "1",
        "long_name": "whitened strain in units of sigma",
        "sample_rate": schema.sample_rate,
        "detectors": list(schema.detectors),
    }
    if schema.encoding.scale_factor is not None:
        strain_attributes["scale_factor"] = schema.encoding.scale_factor
        strain_attributes["_FillValue"] = schema.encoding.fill_value
    children: dict[str, dict[str, Any]] = {
        # A Zarr group, so that Zarr readers that list the folder know what it is.
        MANIFEST_FOLDER: {"zarr_format": 3, "node_type": "group"},
        "strain": _array(
            (schema.events, detectors, samples),
            (per_shard, detectors, samples),
            ("event", "detector", "time"),
            schema.encoding.dtype.name,
            schema.encoding.fill_value,
            strain_attributes,
            inner_chunk=(1, detectors, samples),
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
                "sha256": hashlib.sha256(psd_bytes).hexdigest(),
            },
        ),
    }
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "strainflow": {
                "format_version": FORMAT_VERSION,
                "encoding": schema.encoding.name,
                "events": schema.events,
                "events_per_shard": per_shard,
                "noisy": schema.noisy,
                **schema.provenance,
            }
        },
        # With this, xarray and zarr-python read one file in place of listing the folder.
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": children},
    }
    documents = {f"{name}/zarr.json": document for name, document in children.items()}
    documents[GROUP_METADATA] = group
    files = {path: canonical_json(document) for path, document in documents.items()}
    return {PSD_CHUNK: psd_bytes, **files}


def schema_from_metadata(documents: Mapping[str, Mapping[str, Any]], where: str) -> Schema:
    """Read a schema back from the parsed metadata files.

    Args:
        documents: The parsed files, by their path within the data set.
        where: The data set, for messages.

    Raises:
        InputError: It is no data set of ours, or of a format that this version does not know.
    """
    group, strain, parameters, psd = (
        documents[path]
        for path in (GROUP_METADATA, "strain/zarr.json", "parameters/zarr.json", "psd/zarr.json")
    )
    ours = dict(group.get("attributes", {}).get("strainflow", {}))
    version = ours.pop("format_version", None)
    if version is None:
        raise InputError(
            f"{where}: a Zarr group, but none that strainflow wrote (zarr.json has no strainflow "
            "attributes); give a folder made by `strainflow simulate`"
        )
    if version != FORMAT_VERSION:
        raise InputError(
            f"{where}: its format version is {version}, this strainflow reads version "
            f"{FORMAT_VERSION}; install the strainflow that wrote it"
        )
    return Schema(
        events=ours.pop("events"),
        events_per_shard=ours.pop("events_per_shard"),
        detectors=tuple(strain["attributes"]["detectors"]),
        samples=strain["shape"][2],
        sample_rate=strain["attributes"]["sample_rate"],
        encoding=encoding_named(ours.pop("encoding")),
        noisy=ours.pop("noisy"),
        parameters=tuple(Parameter(**column) for column in parameters["attributes"]["parameters"]),
        frequencies=psd["shape"][1],
        frequency_step=psd["attributes"]["frequency_step"],
        provenance=ours,
    )


def shard_files(shard: int) -> dict[str, str]:
    """The files of a shard by array, as paths within the data set."""
    return {
        "strain": f"strain/c/{shard}/0/0",
        "parameters": f"parameters/c/{shard}/0",
        "optimal_snr": f"optimal_snr/c/{shard}/0",
    }


def canonical_json(document: object) -> bytes:
    """Write JSON in the one form that our files use, so that equal content has equal bytes."""
    return json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def _array(
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dimensions: tuple[str, ...],
    data_type: str,
    fill_value: int | str,
    attributes: Mapping[str, Any],
    inner_chunk: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """The metadata of one Zarr v3 array; sharded where an inner chunk is given."""
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    if data_type == "int8":
        little_endian = {"name": "bytes"}
    codecs: list[dict[str, Any]] = [little_endian]
    if inner_chunk is not None:
        codecs = [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": list(inner_chunk),
                    "codecs": [little_endian],
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
