"""The same events in another encoding, shard by shard on Dask, with the loss of each certified."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster import ClusterConfig
from pipeline.promise import largest_peak
from pipeline.provenance import simulator_of_dataset
from pipeline.run import RunReport, complete, refuse_a_file
from pipeline.runlog import ShardReport
from pipeline.shard_task import checks_of, reported
from storage.arrays import as_bytes
from storage.dataset import create_dataset, read_psd, read_schema
from storage.encodings import (
    Encoding,
    certified,
    default_loss,
    encoding_for,
    encoding_named,
)
from storage.errors import InputError
from storage.manifest import read_table, require_complete
from storage.manifest_proof import proved_manifest, proved_manifests
from storage.schema import GROUP_METADATA, Event, Schema, Source, shard_files
from storage.shard_reader import ShardReader
from storage.urls import Store, store_of
from storage.writer import write_shard


@dataclass(frozen=True, kw_only=True)
class RecodeConfig:
    """Into what a data set is recoded, and where the work is done.

    Args:
        encoding: As for simulate; where none is given, the smallest that keeps max_snr_loss.
        max_snr_loss: The largest share of its SNR that any event may lose against the source; where
            neither this nor an encoding is given, 1e-3 with noise and 1e-4 without.
        cluster: Where the work is done.
    """

    encoding: str | None = None
    max_snr_loss: float | None = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        certified(encoding_named(self.encoding or "float32"), self.max_snr_loss)


@dataclass
class RecodeReport(RunReport):
    """What a run of recode did.

    Attributes:
        encoding: Name of the new encoding.
        largest_snr_loss: The largest share of the SNR that an event lost against the source.
        recoded_from: The source and those from which that was recoded itself, without such as lost
            nothing.
    """

    encoding: str = ""
    largest_snr_loss: float = 0.0
    recoded_from: list[Source] = field(default_factory=list)


def recode_dataset(
    config: RecodeConfig, url: str | Path | Store, out: str | Path | Store
) -> RecodeReport:
    """Write the events of a data set once more, in another encoding, or what is missing of it.

    Of a source that lost nothing, the files are those that a simulation in that encoding writes.

    Args:
        config: Into what, and where.
        url: The source.
        out: The new data set.

    Raises:
        InputError: There is no source, or the place holds something else.
        DamagedDataError: The source is not complete, or damaged.
    """
    source, target = store_of(url), store_of(out)
    schema = read_schema(source)
    require_complete(source, schema)
    there, place = (f"{store.address.rstrip('/')}/" for store in (source, target))
    if place.startswith(there):
        how = "is" if place == there else "lies in"
        raise InputError(f"out: {target.url} {how} the source; give another place")
    refuse_a_file(target)
    recoded = replace(
        schema,
        encoding=_encoding_of(config, source, schema),
        provenance=_provenance_of(source, schema),
    )
    with target.only_writer():
        create_dataset(target, recoded, read_psd(source))
        task = partial(recode_shard, source.address)
        report = complete(target, recoded, config.cluster, task)
        return RecodeReport(
            **vars(report),
            encoding=recoded.encoding.name,
            largest_snr_loss=_largest_loss(target, recoded),
            recoded_from=recoded.sources,
        )


def recode_shard(source: str, out: str, shard: int) -> ShardReport:
    """Recode one shard; the task of a worker.

    Args:
        source: The data set to read.
        out: The one to write.
        shard: Number of the shard, in both.
    """
    with reported() as report:
        events = stored_events(store_of(source), read_schema(source), shard)
        target = read_schema(out)
        return report(write_shard(out, target, shard, events, partial(checks_of, out, shard)))


def stored_events(store: Store, schema: Schema, shard: int) -> Iterator[Event]:
    """Read the events of a shard, each proved by its checksum.

    Raises:
        DamagedDataError: One of them is damaged.
    """
    manifest = proved_manifest(store, store.read(GROUP_METADATA), shard)
    paths = shard_files(shard)
    parameters, snrs = (
        read_table(store, schema, manifest, name) for name in ("parameters", "optimal_snr")
    )
    reader = ShardReader(
        store,
        paths["strain"],
        schema.events_per_shard,
        schema.encoding,
        manifest.crc32c,
        schema.events_of(shard).start,
    )
    codes = np.empty(schema.strain_shape, schema.encoding.dtype)
    # Draws that were thrown away are known for the shard as a whole.
    rejected = Counter(manifest.rejected)
    for row, number in enumerate(schema.events_of(shard)):
        reader.read(row, [as_bytes(codes)])
        strain = schema.encoding.decode(codes)
        yield Event(number, strain, parameters[row], snrs[row], rejected)
        rejected = Counter()
    reader.close()


def _encoding_of(config: RecodeConfig, source: Store, schema: Schema) -> Encoding:
    if config.encoding is not None:
        return certified(encoding_named(config.encoding), config.max_snr_loss)
    loss = default_loss(schema.noisy) if config.max_snr_loss is None else config.max_snr_loss
    peak = schema.encoding.limit
    if schema.encoding.type != "int8":  # beyond which an event has no peak, and int8 holds it
        simulator, _ = simulator_of_dataset(source.address)
        peak = min(peak, largest_peak(simulator))
    samples = math.prod(schema.strain_shape)
    return encoding_for(loss, schema.noisy, peak, schema.encoding, samples)


def _provenance_of(source: Store, schema: Schema) -> dict[str, Any]:
    """Where recoded data come from: as the source, by way of it where it had lost something."""
    if schema.encoding.type == "float32":
        return dict(schema.provenance)
    before: dict[str, Any] = {
        "encoding": asdict(schema.encoding),
        "largest_snr_loss": _largest_loss(source, schema),
    }
    if "recoded_from" in schema.provenance:
        before["recoded_from"] = schema.provenance["recoded_from"]
    return {**schema.provenance, "recoded_from": before}


def _largest_loss(store: Store, schema: Schema) -> float:
    """The largest loss of an event that the manifests of a complete data set certify.

    Raises:
        DamagedDataError: One of them is missing, altered, or of another data set.
    """
    manifests = proved_manifests(store, store.read(GROUP_METADATA), range(schema.shards))
    return max(manifest.largest_snr_loss for manifest in manifests)
