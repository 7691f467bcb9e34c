"""Verification of a data set on Dask, a shard a task."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline.cluster import ClusterConfig
from pipeline.provenance import RECORDED
from pipeline.run import on_workers
from storage.finding import Finding
from storage.inventory import FOREIGN, LINK, Inventory, take_inventory
from storage.progress import progress_bar
from storage.schema import shard_files
from storage.urls import Store, store_of
from storage.verify import ShardVerdict, look_at_lengths, verify_shard

# Up to so many bytes are read sooner than workers are started.
READ_HERE = 2 * 10**9
MOST_LINES = 50


@dataclass
class VerifyReport:
    """The answer of `strainflow verify`.

    Attributes:
        data: The data set.
        quick: Whether only presence and lengths were looked at.
        shards: Finished shards that were looked at.
        events: In them.
        bytes: That were read.
        seconds: That it took [s].
        findings: All that is not as it was written.
        notes: What could not be verified, and why.
        advice: What to do about the findings.
    """

    data: str
    quick: bool
    shards: int = 0
    events: int = 0
    bytes: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    def add(self, seconds: float, verdict: ShardVerdict) -> None:
        """Count a shard in."""
        self.seconds = seconds
        self.shards += 1
        self.events += verdict.events
        self.bytes += verdict.bytes
        self.findings += verdict.findings

    @property
    def damaged_shards(self) -> list[int]:
        """The shards of which a file is damaged or missing."""
        return sorted({found.shard for found in self.findings if found.shard is not None})


def verify_dataset(
    url: str | Path | Store, cluster: ClusterConfig, quick: bool = False
) -> VerifyReport:
    """Find every byte of a data set that is not as it was written.

    Args:
        url: The data set.
        cluster: Where its shards are read.
        quick: Whether only presence and lengths of files are looked at.

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: Its metadata are lost.
    """
    store = store_of(url)
    inventory = take_inventory(store)
    report = VerifyReport(store.url, quick, findings=list(inventory.findings))
    report.notes = inventory.notes
    with progress_bar(len(inventory.finished), "shard") as bar:
        for seconds, verdict in _verdicts(store, inventory, cluster, quick):
            report.add(seconds, verdict)
            if report.seconds:
                rate = report.bytes / report.seconds / 1e9
                bar.set_postfix_str(
                    f"{rate:.2f} GB/s, {len(report.findings)} findings", refresh=False
                )
            bar.update()
    report.advice = tuple(_advice(report.findings, inventory, store.url))
    return report


def _verdicts(
    store: Store, inventory: Inventory, cluster: ClusterConfig, quick: bool
) -> Iterator[tuple[float, ShardVerdict]]:
    """The verdict on each finished shard, and the time since the start [s]."""
    start = time.perf_counter()
    if quick:
        for verdict in look_at_lengths(store, inventory):
            yield time.perf_counter() - start, verdict
        return
    task = partial(verify_shard, store.address, inventory.group)
    if cluster.kind == "local" and _is_small(store, inventory):
        for shard in inventory.finished:
            verdict = task(shard)
            yield time.perf_counter() - start, verdict
        return
    yield from on_workers(cluster, store, task, inventory.finished)


def _is_small(store: Store, inventory: Inventory) -> bool:
    """Whether the shards are read sooner here than workers are started."""
    if not inventory.finished:
        return True
    first = store.length(shard_files(inventory.finished[0])["strain"])
    return (first or 0) * len(inventory.finished) < READ_HERE


def summary(report: VerifyReport) -> str:
    """Put it into words."""
    found = len(report.findings)
    lines = [f"{report.data}: {'DAMAGED OR INCOMPLETE' if found else 'sound'}"]
    lines += [f"  {item}" for item in report.findings[:MOST_LINES]]
    if found > MOST_LINES:
        lines.append(f"  ... and {found - MOST_LINES} more; --json lists all")
    lines += [f"  note: {note}" for note in report.notes]
    looked = f"  {report.shards:,} shards with {report.events:,} events"
    if report.quick:
        lines.append(f"{looked}: presence and length of every file; without --quick every byte")
    else:
        rate = report.bytes / report.seconds / 1e9 if report.seconds else 0.0
        lines.append(
            f"{looked}: every byte of {report.bytes / 1e9:.3f} GB in {report.seconds:.1f} s "
            f"({rate:.2f} GB/s)"
        )
    lines += [f"  {sentence}" for sentence in report.advice]
    return "\n".join(lines)


def _advice(findings: list[Finding], inventory: Inventory, place: str) -> Iterator[str]:
    """What to do about findings, a sentence each."""
    schema = inventory.schema
    mendable = [item for item in findings if item.mendable]
    of_shards = any(item.shard is not None for item in mendable)
    again = f"the same `strainflow {schema.verb}` again writes what is missing"
    repair = f"`strainflow repair {place}` mends"
    if inventory.disputed:  # which comes first; the finding says how
        pass
    elif schema.verb == "cut" and of_shards:
        yield f"{again} or damaged; {repair} metadata"
    elif of_shards and not schema.provenance.keys() >= set(RECORDED):
        yield (
            "the metadata do not say how shards were simulated: put those back from a copy; "
            f"{repair} metadata"
        )
    elif mendable:
        more = f"; {again}" if schema.verb == "recode" and of_shards else ""
        yield f"{repair} shards and metadata{more}"
    if any(item.what in (FOREIGN, LINK) for item in findings):
        yield "what does not belong to it, and links, are yours to move: repair does not"
    if any(item.what.startswith("cannot be read") and not item.mendable for item in findings):
        yield "of what may not be read nobody knows more: give yourself the right to read it"
