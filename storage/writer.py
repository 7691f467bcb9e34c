"""Writing one shard: events come in one by one, all its files are there when the manifest is."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from storage.files import write_atomically
from storage.manifest import Manifest, write_manifest
from storage.schema import Event, Schema, canonical_json, dataset_files, shard_files
from storage.shard import ShardLayout, ShardWriter, event_key, longest_json


def write_shard(
    folder: Path,
    schema: Schema,
    shard: int,
    events: Iterable[Event],
    check: Callable[[], Mapping[str, Mapping[str, Any]]] = dict,
) -> Manifest:
    """Write all files of one shard, its manifest last.

    Args:
        folder: The data set.
        schema: What the data set is.
        shard: Number of the shard.
        events: Its events, in order; consumed one by one.
        check: Called when all files but the manifest are in place; gives the manifest's `checks`.

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
        written[paths[name]] = write_atomically(
            folder / paths[name], values.tobytes(), contested=True
        )
    manifest = Manifest(
        shard=shard,
        first_event=schema.events_of(shard).start,
        events=len(schema.events_of(shard)),
        files={
            path: {"bytes": length, "blake3": digest} for path, (length, digest) in written.items()
        },
        crc32c=tuple(writer.crc32c),
        largest_snr_loss=max(losses),
        rejected=dict(sorted(rejected.items())),
        checks=check(),
    )
    write_manifest(folder, manifest)
    return manifest


def shard_layout(schema: Schema) -> ShardLayout:
    """Where everything lies in a shard of this data set."""
    return ShardLayout(
        slots=schema.events_per_shard,
        shape=schema.strain_shape,
        dtype=schema.encoding.dtype,
        json_room=longest_json(event_facts(schema, _widest_event(schema))),
    )


def dataset_size(schema: Schema) -> tuple[int, int]:
    """Bytes and number of the files of a complete data set.

    Both are exact but for the manifests, which differ in their digits and checks.
    """
    layout = shard_layout(schema)
    full, last = (len(schema.events_of(shard)) for shard in (0, schema.shards - 1))
    tables = 8 * schema.events_per_shard * (len(schema.parameters) + len(schema.detectors))
    manifest = len(canonical_json(vars(_typical_manifest(schema))))
    metadata = dataset_files(schema, np.zeros((len(schema.detectors), schema.frequencies)))
    total = (schema.shards - 1) * layout.file_size(full) + layout.file_size(last)
    total += schema.shards * (tables + manifest) + sum(map(len, metadata.values()))
    return total, schema.shards * (len(shard_files(0)) + 1) + len(metadata)


def _typical_manifest(schema: Schema) -> Manifest:
    shard = schema.shards // 2
    return Manifest(
        shard=shard,
        first_event=schema.events_of(shard).start,
        events=schema.events_per_shard,
        files={path: {"bytes": 10**8, "blake3": "0" * 64} for path in shard_files(shard).values()},
        crc32c=(2**31,) * schema.events_per_shard,
        largest_snr_loss=1 / 3,
        rejected={},
        checks={},
    )


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


def _widest_event(schema: Schema) -> Event:
    return Event(
        number=schema.events,
        strain=np.zeros((0, 0)),
        parameters=np.zeros(len(schema.parameters)),
        optimal_snr=np.zeros(len(schema.detectors)),
        rejected={},
    )
