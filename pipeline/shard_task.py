"""What a worker does with a shard: it simulates the events, checks what it wrote, and reports.

Recoding and cutting write other events into their shards, with the same checks and the same report.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from pipeline.memory import keep_freed_memory
from pipeline.null_stream import check_shard
from pipeline.provenance import simulator_of_same_libraries
from pipeline.runlog import ShardReport
from storage.dataset import read_schema
from storage.errors import InputError, PeakError
from storage.manifest import Manifest, dataset_identity
from storage.schema import Event, Schema
from storage.writer import write_shard

NULL_STREAM_EVENTS = 2  # the loudest of a shard: 4 ms each

# LALSimulation holds Python's lock: a worker with several threads gains nothing by taking turns.
_one_at_a_time = threading.Lock()


def simulate_shard(
    url: str,
    shard: int,
    approve: Callable[[Manifest], Manifest] = lambda manifest: manifest,
) -> ShardReport:
    """Simulate and write one shard; the task of a worker.

    Args:
        url: The data set.
        shard: Its number.
        approve: As for `write_shard`.
    """
    keep_freed_memory()
    identity = dataset_identity(url)
    with _one_at_a_time, reported() as report:
        simulator, schema = simulator_of_same_libraries(url, identity)
        events = _as_recoded(simulator.events(schema.events_of(shard)), schema)
        checks = partial(checks_of, url, shard)
        try:
            return report(write_shard(url, schema, shard, events, checks, approve))
        except PeakError as error:
            # Polarisations lie at one distance, whatever their SNR.
            lower = (
                "" if schema.polarisations else ", or simulate with a lower maximum of network_snr"
            )
            raise InputError(f"{error}{lower}") from None


def _as_recoded(events: Iterable[Event], schema: Schema) -> Iterator[Event]:
    """Events as those data sets held them from which this one was recoded, the first one first."""
    earlier = schema.encodings_before
    for event in events:
        strain = event.strain
        for encoding in earlier:
            strain = encoding.decode(encoding.encode(strain, event.number, schema.noisy))
        yield replace(event, strain=strain)


@contextmanager
def reported() -> Iterator[Callable[[Manifest], ShardReport]]:
    """Time what a worker does for a shard; gives what turns its manifest into the report."""
    start, cpu_start = time.perf_counter(), time.process_time()
    yield lambda manifest: ShardReport(
        shard=manifest.shard,
        events=manifest.events,
        bytes=manifest.bytes,
        rejected=manifest.rejected,
        failed_checks=tuple(name for name, found in manifest.checks.items() if not found["passed"]),
        core_seconds=time.process_time() - cpu_start,
        seconds=time.perf_counter() - start,
        worker=_worker_name(),
        host=socket.gethostname(),
        process=os.getpid(),
    )


def checks_of(url: str, shard: int) -> dict[str, dict[str, Any]]:
    """What physics can say against a shard's files; recorded in its manifest.

    Nothing of noise out of frames, which need not be what their PSD says.
    """
    if {"frames", "noise_frames"} & read_schema(url).provenance.keys():
        return {}
    report = check_shard(url, shard, NULL_STREAM_EVENTS)
    return {} if report is None else {"null_stream": asdict(report)}


def _worker_name() -> str:
    from distributed import get_worker

    try:
        return str(get_worker().name)
    except ValueError:  # not called by Dask
        return ""
