"""Writing one shard: events come in one by one, all its files are there when the manifest is."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from storage.documents import canonical_json
from storage.manifest import Manifest, dataset_identity, write_manifest
from storage.metadata import dataset_files
from storage.schema import Event, Schema, shard_files
from storage.shard import ShardLayout, ShardWriter, event_key, longest_json
from storage.urls import OutputFile, Store, store_of


def write_shard(
    url: str | Path | Store,
    schema: Schema,
    shard: int,
    events: Iterable[Event],
    check: Callable[[], Mapping[str, Mapping[str, Any]]] = dict,
    approve: Callable[[Manifest], Manifest] = lambda manifest: manifest,
) -> Manifest:
    """Write all files of one shard, its manifest last.

    Args:
        url: The data set.
        schema: What the data set is.
        shard: Number of the shard.
        events: Its events, in order; consumed one by one.
        check: Called when all files but the manifest are in place; gives the manifest's `checks`.
        approve: Called when all bytes are written but no file has its name yet, with the manifest
            as it would be without checks; gives it back, or raises, and then nothing has changed.

    Raises:
        InputError: An event does not fit the encoding, or loses more than was promised. No manifest
            is written.
    """
    store = store_of(url)
    encoding, identity = schema.encoding, dataset_identity(store)
    table = np.full((schema.events_per_shard, len(schema.parameters)), np.nan, "<f8")
    snrs = np.full((schema.events_per_shard, len(schema.detectors)), np.nan, "<f8")
    losses, rejected = [(0.0, schema.events_of(shard).start)], Counter[str]()
    paths = shard_files(shard)
    with ExitStack() as stack:
        writer = stack.enter_context(
            ShardWriter(store.create(paths["strain"], contested=True), shard_layout(schema))
        )
        # Strict, so that too few or too many events leave no file behind.
        for row, (number, event) in enumerate(zip(schema.events_of(shard), events, strict=True)):
            assert event.number == number, f"event {event.number} came in place of {number}"
            codes = encoding.encode(event.strain, event.number, schema.noisy)
            loss = encoding.certify(event.strain, codes, schema.noisy, event.number)
            losses.append((loss, event.number))
            table[row], snrs[row] = event.parameters, event.optimal_snr
            rejected.update(event.rejected)
            writer.add(event_key(event.number), codes, event_facts(schema, event))
        writer.close()
        files: dict[str, OutputFile] = {paths["strain"]: writer.file}
        for name, values in (("parameters", table), ("optimal_snr", snrs)):
            file = files[paths[name]] = store.create(paths[name], contested=True)
            stack.callback(file.discard)
            file.write(values.tobytes())
        largest, worst = max(losses, key=lambda item: item[0])
        manifest = approve(
            Manifest(
                shard=shard,
                first_event=schema.events_of(shard).start,
                events=len(schema.events_of(shard)),
                files={
                    path: {"bytes": file.length, "blake3": file.digest()}
                    for path, file in files.items()
                },
                crc32c=tuple(writer.crc32c),
                largest_snr_loss=largest,
                worst_event=worst,
                rejected=dict(sorted(rejected.items())),
                dataset=identity,
            )
        )
        for file in files.values():
            file.finish()
    return write_manifest(store, manifest.with_checks(check()))


def shard_layout(schema: Schema) -> ShardLayout:
    """Where everything lies in a shard of this data set."""
    return ShardLayout(
        slots=schema.events_per_shard,
        shape=schema.strain_shape,
        encoding=schema.encoding,
        json_room=longest_json(event_facts(schema, _widest_event(schema))),
    )


def dataset_size(schema: Schema, payload: float | None = None) -> tuple[int, int]:
    """Bytes and number of the files of a complete data set.

    Both are exact but for the manifests, which differ in their digits and checks, and for
    compressed events.

    Args:
        schema: What the data set is.
        payload: Mean bytes of a compressed event.
    """
    layout = shard_layout(schema)
    full, last = (len(schema.events_of(shard)) for shard in (0, schema.shards - 1))
    tables = 8 * schema.events_per_shard * (len(schema.parameters) + len(schema.detectors))
    manifest = len(canonical_json(vars(_typical_manifest(schema))))
    metadata = dataset_files(schema, np.zeros((len(schema.detectors), schema.frequencies)))
    total = schema.shards * (tables + manifest) + sum(map(len, metadata.values()))
    if payload is None:
        total += (schema.shards - 1) * layout.file_size(full) + layout.file_size(last)
    else:
        total += schema.shards * (1024 + layout.index_size)
        # Two headers, and on average half a block of padding.
        total += round(schema.events * (payload + layout.json_size(0) + 1024 + 256))
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
        worst_event=schema.events_of(shard).start,
        rejected={},
        dataset="0" * 64,
        digest="0" * 64,
    )


def event_facts(schema: Schema, event: Event) -> dict[str, Any]:
    """What stands in an event's JSON: all that a reader who has just the tar needs."""
    facts = {
        "event": event.number,
        "detectors": list(schema.detectors),
        **({"polarisations": list(schema.polarisations)} if schema.polarisations else {}),
        "sample_rate": schema.sample_rate,
        "scale_factor": schema.encoding.scale_factor or 1.0,
        "parameters": dict(
            zip(schema.parameter_names, map(_number_or_null, event.parameters), strict=True)
        ),
        "optimal_snr": [_number_or_null(value) for value in event.optimal_snr],
    }
    if schema.encoding.compressed:  # what stands in the header of a .npy otherwise
        facts |= {"dtype": schema.encoding.dtype.str, "samples": schema.samples}
    return facts


def _number_or_null(value: float) -> float | None:
    """For JSON, which has no NaN: nothing stands for what is not known, as of a real event."""
    return None if math.isnan(value) else float(value)


def _widest_event(schema: Schema) -> Event:
    return Event(
        number=schema.events,
        strain=np.zeros((0, 0)),
        parameters=np.zeros(len(schema.parameters)),
        optimal_snr=np.zeros(len(schema.detectors)),
        rejected={},
    )
