"""The way back from damage: metadata from their copies, shards by simulating them once more."""

import re
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from pipeline.cluster import ClusterConfig
from pipeline.config import simulation_from_dict
from pipeline.frame_noise import psds_of
from pipeline.provenance import RECORDED
from pipeline.run import nothing_left_half_written, on_workers
from pipeline.runlog import RunLog, ShardReport
from pipeline.shard_task import simulate_shard
from pipeline.verify import MOST_LINES, verify_dataset
from storage.dataset import is_recorded_psd, read_schema
from storage.digests import file_digest
from storage.documents import parse_json, sealed_document, sealed_json
from storage.errors import UNREADABLE, DamagedDataError, InputError
from storage.finding import Finding
from storage.inventory import Inventory, take_inventory
from storage.manifest import Manifest, manifest_path, parse_manifest, recorded_digest
from storage.metadata import children_files
from storage.progress import progress_bar
from storage.schema import GROUP_COPY, GROUP_METADATA, PSD_CHUNK, Schema, shard_files
from storage.urls import Store, store_of

NOT_SIMULATED = (
    "its events were cut out of frames and cannot be simulated; run the same `strainflow cut` "
    "again, which cuts once more what is damaged or missing; where it was recoded, recode its "
    "source again"
)


class OtherBytesError(DamagedDataError):
    """A shard was simulated again and has other bytes than its manifest records."""


@dataclass
class RepairReport:
    """The answer of `strainflow repair`.

    Attributes:
        data: The data set.
        found: What was damaged or missing.
        removed: Files that writers that died had left behind, and that were removed.
        metadata: Files of the metadata that were restored.
        shards: Shards that were simulated again.
        accepted: Those of them whose bytes are not the ones that were recorded before.
        refused: Why shards were not replaced, by number.
        remaining: What is still not as it was written.
    """

    data: str
    found: list[Finding] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    remaining: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Mended:
    """What became of one shard.

    Attributes:
        shard: Its number.
        report: Of its simulation; None where it was not replaced.
        refusal: Why it was not replaced.
        accepted: Whether it has other bytes than were recorded.
    """

    shard: int
    report: ShardReport | None = None
    refusal: str = ""
    accepted: bool = False


def repair_dataset(url: str | Path | Store, cluster: ClusterConfig, accept: bool) -> RepairReport:
    """Restore what is damaged or missing, byte for byte.

    Args:
        url: The data set.
        cluster: Where shards are verified and simulated.
        accept: Whether a shard is replaced although its new bytes are not the recorded ones, as on
            another kind of CPU; its manifest then records those that were there before.

    Raises:
        InputError: There is no data set of ours, or somebody writes to it.
        DamagedDataError: Its metadata are lost, or nothing says which of the two copies are right.
    """
    store = store_of(url)
    _undisputed_inventory(store)  # before the place is held: it may be none of ours
    with store.only_writer():
        removed = store.remove_partial_files()
        inventory = _undisputed_inventory(store)
        restored = _restore_metadata(store, inventory)
        before = verify_dataset(store, cluster)
        report = RepairReport(store.url, [*_of_files(inventory, restored), *before.findings])
        report.metadata, report.removed = restored, removed
        report.refused = _closed(before.findings)
        damaged = {*before.damaged_shards, *_unfinished(inventory)}
        shards = sorted(damaged - report.refused.keys())
        if shards:
            _mend(store, cluster, accept, shards, inventory.schema, report)
            # Without a manifest nothing told that there should be a copy of the metadata.
            report.metadata += _restore_metadata(store, take_inventory(store))
        report.removed += store.remove_partial_files()
        report.remaining = _remaining(store, report)
    return report


def _undisputed_inventory(store: Store) -> Inventory:
    """Take the inventory of a data set whose metadata can be told from what they are not.

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: Its metadata are lost, or they and their copy differ and nothing proves
            either.
    """
    inventory = take_inventory(store)
    if inventory.disputed:
        finding = next(item for item in inventory.findings if item.file == GROUP_METADATA)
        raise DamagedDataError(f"{store.where(finding.file)}: {finding.what}; nothing was changed")
    return inventory


def _closed(findings: list[Finding]) -> dict[int, str]:
    """Why nothing is done for shards of which a file may not be read, by their numbers."""
    return {
        finding.shard: f"shard {finding.shard}: {finding.file} {finding.what}, so nobody knows "
        "whether it is damaged; give yourself the right to read it"
        for finding in findings
        if finding.shard is not None and not finding.mendable
    }


def _mend(
    store: Store,
    cluster: ClusterConfig,
    accept: bool,
    shards: list[int],
    schema: Schema,
    report: RepairReport,
) -> None:
    """Simulate shards again, and count what became of them."""
    log = RunLog(store.beside)
    events = sum(len(schema.events_of(shard)) for shard in shards)
    task = partial(mend_shard, store.address, accept)
    with (
        progress_bar(events, "event") as bar,
        nothing_left_half_written(store, cluster),
        closing(on_workers(cluster, store, task, shards)) as done,
    ):
        for _, mended in done:
            if mended.report is None:
                report.refused[mended.shard] = mended.refusal
            else:
                report.shards.append(mended.shard)
                log.add(mended.report)
            if mended.accepted:
                report.accepted.append(mended.shard)
            bar.update(len(schema.events_of(mended.shard)))
    report.shards.sort()


def mend_shard(url: str, accept: bool, shard: int) -> Mended:
    """Simulate a shard again, prove it, and put it in place; the task of a worker.

    Args:
        url: The data set.
        accept: Whether other bytes than those that were recorded are taken.
        shard: Its number.
    """
    if reason := _reason_against(store_of(url), shard):
        return Mended(shard, refusal=f"shard {shard}: {reason}")
    proof = _Proof(store_of(url), accept, shard)
    try:
        report = simulate_shard(url, shard, proof.approve)
    except OtherBytesError as error:
        return Mended(shard, refusal=str(error))
    return Mended(shard, report, accepted=proof.accepted)


def _reason_against(store: Store, shard: int) -> str | None:
    """Why a shard is not simulated again, whatever comes of it."""
    provenance = read_schema(store).provenance
    if "frames" in provenance:
        return NOT_SIMULATED
    if lacking := [name for name in RECORDED if name not in provenance]:
        return (
            f"the metadata do not say how it was simulated (no {lacking[0]!r}), so it cannot be "
            "simulated again; put its files back from a copy of the data set, or write them with "
            "what wrote them"
        )
    paths = (*shard_files(shard).values(), manifest_path(shard))
    if link := next(filter(None, map(store.link_above, paths)), None):
        return f"{link} is a link, through which nothing is written; put the folder in its place"
    return None


@dataclass
class _Proof:
    """Holds a shard that was simulated again against what is recorded of it."""

    store: Store
    accept: bool
    shard: int
    accepted: bool = False

    def approve(self, new: Manifest) -> Manifest:
        """Give the manifest to be written.

        Raises:
            OtherBytesError: The new files are not those that were recorded, and that was not
                accepted.
        """
        path, made = manifest_path(self.shard), _digests(new)
        (found,) = self.store.contents([path])
        if found is None:  # never finished: there is nothing to hold it against
            return new
        content = found if isinstance(found, bytes) else b""  # what cannot be read records nothing
        # Digests prove the new files even where the rest of the manifest is damaged.
        if all(f'"blake3": "{digest}"'.encode() in content for digest in made.values()):
            return replace(new, replaced=_replaced_in(content, made))
        sealed = sealed_document(content)
        if sealed is not None and (sealed.get("shard"), sealed.get("dataset")) != (
            self.shard,
            new.dataset,
        ):
            self.store.remove(path)  # of another shard or data set: it says nothing of this one
            return new
        old = self._old(content)
        believed = old is not None and (sealed is not None or not old.digest)
        before = _digests(old) if old is not None and believed else self._digests_there()
        if before == made:  # only the manifest is damaged
            return new
        if not self.accept:
            raise OtherBytesError(self._refusal(believed))
        # Until the new manifest is there the old one stays, damaged files or not: what it records
        # would be lost if this was stopped in between. A damaged one records nothing: what it gives
        # way to is none either, as long as the files are not there, but says what they replace.
        self.accepted = True
        accepted = replace(new, replaced=before)
        if not believed:
            self.store.write(path, sealed_json(vars(accepted))[: -len(b"}\n")], contested=True)
        return accepted

    def _old(self, content: bytes) -> Manifest | None:
        """The manifest that is there, if it can be read."""
        path = manifest_path(self.shard)
        try:
            return parse_manifest(content, read_schema(self.store), self.shard, path)
        except DamagedDataError:
            return None

    def _digests_there(self) -> dict[str, str]:
        """Of the shard's files as they are."""
        found = {path: self._digest_of(path) for path in shard_files(self.shard).values()}
        return {path: digest for path, digest in found.items() if digest is not None}

    def _digest_of(self, path: str) -> str | None:
        """Of a file; None where it is missing, or the disk cannot read it."""
        try:
            length, digest = file_digest(self.store, path)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            return None
        return None if length is None else digest

    def _refusal(self, believed: bool) -> str:
        if not believed:
            return (
                f"shard {self.shard}: its manifest is damaged, and simulated here it has other "
                "bytes than the files that are there; `--accept` takes the new ones, and records "
                "that"
            )
        return (
            f"shard {self.shard}: simulated here it has other bytes than its manifest records, as "
            "on another kind of CPU; repair it on one like that of the first run, or take the new "
            "ones with `--accept`, which records that"
        )


def _digests(manifest: Manifest) -> dict[str, str]:
    """Of a shard's files, by path."""
    return {path: recorded_digest(facts)[1] for path, facts in manifest.files.items()}


def _replaced_in(manifest: bytes, paths: Iterable[str]) -> dict[str, str]:
    """What a manifest records of files that were replaced, be it damaged elsewhere or not."""
    found = {
        path: re.search(rb'"%s": "([0-9a-f]{64})"' % path.encode(), manifest) for path in paths
    }
    return {path: match[1].decode() for path, match in found.items() if match}


def _restore_metadata(store: Store, inventory: Inventory) -> list[str]:
    """Write metadata again whose bytes are known; return their paths."""
    known = children_files(parse_json(inventory.group, store.url))
    known |= {GROUP_METADATA: inventory.group, GROUP_COPY: inventory.group}
    restored = []
    for finding in inventory.findings:
        content = known.get(finding.file)
        if finding.file == PSD_CHUNK:
            content = _psd_again(store, inventory)
        if content is not None and finding.mendable and not store.link_above(finding.file):
            store.write(finding.file, content)
            restored.append(finding.file)
    return restored


def _psd_again(store: Store, inventory: Inventory) -> bytes | None:
    """The PSD as the configuration names it, if that gives the recorded bytes."""
    provenance = inventory.schema.provenance
    if not {"configuration", "detectors"} <= provenance.keys():  # of another writer
        return None
    config = simulation_from_dict(provenance.get("configuration"))
    names = [item["name"] for item in provenance["detectors"]]
    try:
        content = psds_of(config, names).astype("<f8").tobytes()
    except InputError:  # a file that lies elsewhere
        return None
    group = parse_json(inventory.group, store.url)
    return content if is_recorded_psd(content, group) else None


def _unfinished(inventory: Inventory) -> set[int]:
    """The shards that have no manifest."""
    return set(range(inventory.schema.shards)) - set(inventory.finished)


def _of_files(inventory: Inventory, restored: list[str]) -> list[Finding]:
    """What was found of metadata that has been restored since, and is found no more."""
    return [finding for finding in inventory.findings if finding.file in restored]


def _remaining(store: Store, report: RepairReport) -> list[Finding]:
    """What is still not as it was written: files that are not ours, and what was refused."""
    left = [finding for finding in take_inventory(store).findings if finding.shard is None]
    return left + [finding for finding in report.found if finding.shard in report.refused.keys()]


def summary(report: RepairReport) -> str:
    """Put it into words."""
    lines = [f"{report.data}: {'REPAIRED IN PART' if report.remaining else 'sound'}"]
    lines += [f"  found: {finding}" for finding in report.found[:MOST_LINES]]
    if len(report.found) > MOST_LINES:
        lines.append(f"  ... and {len(report.found) - MOST_LINES} more; --json lists all")
    if report.removed:
        lines.append(f"  removed, left by a writer that died: {', '.join(report.removed)}")
    if report.metadata:
        lines.append(f"  restored: {', '.join(report.metadata)}")
    if report.shards:
        proven = [shard for shard in report.shards if shard not in report.accepted]
        lines += [f"  simulated again: shards {_listed(proven)}"] if proven else []
    if report.accepted:
        lines.append(f"  accepted with other bytes than before: shards {_listed(report.accepted)}")
    lines += [f"  refused: {reason}" for reason in report.refused.values()]
    lines += [f"  remains: {finding}" for finding in report.remaining[:MOST_LINES]]
    return "\n".join(lines)


def _listed(shards: list[int]) -> str:
    return ", ".join(map(str, shards[:MOST_LINES])) + (", ..." if len(shards) > MOST_LINES else "")
