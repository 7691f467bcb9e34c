"""Whether every byte of a data set is as it was written; and if not, which file, shard and event.

Digests of whole files find the damage: of the three files of each shard, in its manifest; of the
manifest, in itself; of the group's metadata, in every manifest; of all other metadata, in those.
Where a digest is wrong, checksums of single events, the tar's headers, and what two files both tell
say which events are concerned.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import blake3

from storage.dataset import is_recorded_psd
from storage.digests import file_digest
from storage.documents import canonical_json, parse_json, seal_holds, sealed_document
from storage.errors import FORBIDDEN, UNREADABLE, DamagedDataError, InputError, Unreadable
from storage.examine import Examination, Finding
from storage.manifest import (
    Manifest,
    finished_shards,
    manifest_path,
    parse_manifest,
    recorded_digest,
)
from storage.metadata import children_files, schema_from_metadata
from storage.schema import (
    GROUP_COPY,
    GROUP_METADATA,
    MANIFEST_FOLDER,
    PSD_CHUNK,
    Schema,
    is_folder_of_ours,
    is_partial_of_ours,
    shard_files,
)
from storage.urls import Store, store_of

FOREIGN, LINK = "does not belong to the data set", "is a link"


@dataclass(frozen=True)
class ShardVerdict:
    """What was found in one shard.

    Attributes:
        shard: Its number.
        events: How many it holds.
        bytes: That were read.
        findings: What is wrong with it.
    """

    shard: int
    events: int
    bytes: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Inventory:
    """What the metadata and the list of files say.

    Attributes:
        group: The group's metadata that the shards belong to, as bytes.
        schema: What they say.
        finished: The shards that have a manifest.
        findings: What is wrong with metadata, and files that should not be there.
        notes: What could not be verified, and why.
        disputed: Whether the group's metadata and their copy differ, and nothing proves either:
            then `group` is no more than the first of them.
    """

    group: bytes
    schema: Schema
    finished: tuple[int, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    disputed: bool = False


@dataclass(frozen=True)
class _Group:
    """The group's metadata, or the copy of them, whichever is as it was written.

    Attributes:
        content: Their bytes.
        findings: What is wrong with either.
        identity: Their digest, if a manifest records it.
        disputed: As of `Inventory`.
    """

    content: bytes
    findings: tuple[Finding, ...] = ()
    identity: str | None = None
    disputed: bool = False


def take_inventory(url: str | Path | Store, listed: bool = True) -> Inventory:
    """Verify the metadata, and look for files that are missing or should not be there.

    Args:
        url: The data set.
        listed: Whether all files are listed, to find those that should not be there.

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: Its metadata are lost.
    """
    store = store_of(url)
    found = _group_metadata(store)
    group, findings, identity = found.content, list(found.findings), found.identity
    schema = schema_from_metadata(parse_json(group, store.where(GROUP_METADATA)), store.url)
    children = children_files(parse_json(group, ""))
    for (path, wanted), there in zip(
        children.items(), store.contents(list(children), forbidden=True), strict=True
    ):
        if there != wanted:
            findings.append(_altered(path, there))
    (psd,) = store.contents([PSD_CHUNK], forbidden=True)
    if not isinstance(psd, bytes) or not is_recorded_psd(psd, parse_json(group, "")):
        findings.append(_altered(PSD_CHUNK, psd))
    finished = finished_shards(store, schema)
    findings += _missing_shards(schema, finished)
    if finished and not identity:  # a run may have finished its first shard meanwhile
        identity = _group_metadata(store).identity
        if identity and found.disputed:  # which is settled by that
            return take_inventory(store, listed)
    known = {*children, GROUP_METADATA, GROUP_COPY, PSD_CHUNK}
    findings += _other_files(store, schema, known) if listed else ()
    notes = (
        ()
        if identity or not finished
        else (
            "the manifests are of a strainflow before 0.3.0, which gave them no digests: they "
            "themselves and the group's metadata cannot be verified",
        )
    )
    return Inventory(group, schema, tuple(finished), tuple(findings), notes, found.disputed)


def verify_shard(url: str | Path | Store, group: bytes, shard: int) -> ShardVerdict:
    """Verify every byte of the files of one finished shard.

    Args:
        url: The data set.
        group: The group's metadata.
        shard: Its number.
    """
    store, schema = store_of(url), _schema_of(group)
    (content,) = store.contents([manifest_path(shard)], forbidden=True)
    events = len(schema.events_of(shard))
    total = len(content) if isinstance(content, bytes) else 0
    manifest = _read_manifest(content, group, shard)
    if isinstance(manifest, Finding):  # then nothing is known of the files
        return ShardVerdict(shard, events, total, (manifest,))
    sound, unreadable = dict[str, bool](), dict[str, Unreadable]()
    for file, facts in manifest.files.items():
        kind, recorded = recorded_digest(facts)
        try:
            length, digest = file_digest(store, file, kind)
        except OSError as error:
            if error.errno not in (*UNREADABLE, *FORBIDDEN):
                raise
            sound[file], unreadable[file] = False, Unreadable.of(error)
            continue
        total += length or 0
        sound[file] = (length, digest) == (facts["bytes"], recorded)
    found = Examination(store, schema, manifest, sound, unreadable).findings()
    return ShardVerdict(shard, events, total, tuple(found))


def proved_manifest(url: str | Path | Store, group: bytes, shard: int) -> Manifest:
    """Read the manifest of a shard, and see whether it is as it was written.

    Args:
        url: The data set.
        group: The group's metadata.
        shard: Its number.

    Raises:
        DamagedDataError: It is missing, altered, or of another data set.
    """
    return next(proved_manifests(url, group, [shard]))


def proved_manifests(
    url: str | Path | Store, group: bytes, shards: Sequence[int]
) -> Iterator[Manifest]:
    """Do the same for some shards, one after the other.

    Raises:
        DamagedDataError: One of them is missing, altered, or of another data set.
    """
    store, paths = store_of(url), list(map(manifest_path, shards))
    for shard, path, content in zip(
        shards, paths, store.contents(paths, forbidden=True), strict=True
    ):
        manifest = _read_manifest(content, group, shard)
        if isinstance(manifest, Finding):
            raise DamagedDataError(
                f"{store.where(path)}: {manifest.what}; `strainflow repair {store.url}` mends it"
            )
        yield manifest


def look_at_lengths(url: str | Path | Store, inventory: Inventory) -> Iterator[ShardVerdict]:
    """See whether the files of each finished shard are there and as long as they were written.

    The manifests, which say how long, are proved too.

    Args:
        url: The data set.
        inventory: Of it.
    """
    store, schema = store_of(url), inventory.schema
    length_of = store.lengths()
    paths = [manifest_path(shard) for shard in inventory.finished]
    for shard, content in zip(
        inventory.finished, store.contents(paths, forbidden=True), strict=True
    ):
        events = len(schema.events_of(shard))
        manifest = _read_manifest(content, inventory.group, shard)
        if isinstance(manifest, Finding):
            yield ShardVerdict(shard, events, 0, (manifest,))
            continue
        findings = []
        for file, facts in manifest.files.items():
            try:
                length = length_of(file)
            except PermissionError as error:
                what = str(Unreadable.of(error))
                findings.append(Finding(file, what, shard, mendable=False))
                continue
            if length != facts["bytes"]:
                what = "is missing" if length is None else f"has {length:,} bytes"
                findings.append(Finding(file, f"{what}, {facts['bytes']:,} were written", shard))
        yield ShardVerdict(shard, events, 0, tuple(findings))


def _read_manifest(
    content: bytes | Unreadable | None, group: bytes, shard: int
) -> Manifest | Finding:
    """Read a manifest, or say what is wrong with it."""
    path, schema = manifest_path(shard), _schema_of(group)
    try:
        manifest = parse_manifest(content, schema, shard, path)
    except DamagedDataError as error:
        what = str(error).removeprefix(f"{path}: ").partition(";")[0]
        forbidden = isinstance(content, Unreadable) and content.forbidden
        return Finding(path, what, shard, mendable=not forbidden)
    if not manifest.digest and not manifest.dataset:  # of before 0.3.0
        return manifest
    assert isinstance(content, bytes), "parsed"
    if not seal_holds(content, manifest.digest):
        return Finding(path, "is not as it was written: its digest is another", shard)
    if manifest.dataset != blake3.blake3(group).hexdigest():
        return Finding(path, "is of another data set", shard, tuple(schema.events_of(shard)))
    return manifest


@lru_cache(maxsize=4)
def _schema_of(group: bytes) -> Schema:
    return schema_from_metadata(parse_json(group, GROUP_METADATA), "the data set")


def _identities_in_manifests(store: Store) -> Iterator[str]:
    """The digest of the group's metadata that each manifest with an unbroken seal records."""
    for name in store.names(MANIFEST_FOLDER):
        if not name[:1].isdigit():
            continue
        (content,) = store.contents([f"{MANIFEST_FOLDER}/{name}"], forbidden=True)
        document = sealed_document(content) if isinstance(content, bytes) else None
        dataset = None if document is None else document.get("dataset")
        if isinstance(dataset, str) and dataset:
            yield dataset


def _identity(store: Store, there: Mapping[str, str | None]) -> str | None:
    """The digest of the metadata to which the shards belong; None where no manifest tells.

    Args:
        store: The data set.
        there: The digests of the group's metadata and of their copy.
    """
    votes = Counter[str]()
    for dataset in _identities_in_manifests(store):
        votes[dataset] += 1
        if set(there.values()) == {dataset}:  # three agree
            return dataset
    # Some shards may be of another data set, or the metadata and their copy differ.
    ranked = sorted(votes, key=lambda dataset: (dataset in there.values(), votes[dataset]))
    return ranked[-1] if ranked else None


def _group_metadata(store: Store) -> _Group:
    """The group's metadata, or the copy of them, whichever is as it was written.

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: Neither is.
    """
    paths = (GROUP_METADATA, GROUP_COPY)
    found = dict(zip(paths, store.contents(paths, forbidden=True), strict=True))
    digests = {
        path: blake3.blake3(content).hexdigest() if isinstance(content, bytes) else None
        for path, content in found.items()
    }
    identity = _identity(store, digests)
    if identity is None:  # no shard is finished, or all are of before 0.3.0
        return _without_proof(store, found)
    sound = [
        data
        for path, data in found.items()
        if isinstance(data, bytes) and digests[path] == identity
    ]
    if not sound:
        raise DamagedDataError(
            f"{store.where(GROUP_METADATA)}: neither it nor its copy {GROUP_COPY} is as the "
            f"manifests record it; run the same `strainflow {_verb_of(found)}` again to restore "
            "them"
        )
    return _Group(sound[0], _all_but(sound[0], found), identity)


def _without_proof(store: Store, found: Mapping[str, bytes | Unreadable | None]) -> _Group:
    """The same where no manifest records them: by what they say, and by what lies beside them.

    Args:
        store: The data set.
        found: The metadata and their copy, by their paths.

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: Neither says what the data set is.
    """
    if found[GROUP_METADATA] is None and found[GROUP_COPY] is None:
        raise InputError(
            f"{store.url}: no data set there (no {GROUP_METADATA}); give a folder made by "
            "`strainflow simulate`"
        )
    read, last = list[bytes](), list[Exception]()
    for path, content in found.items():
        try:
            schema_from_metadata(parse_json(content, store.where(path)), store.url)
        except (InputError, DamagedDataError) as error:
            last.append(error)
        else:
            assert isinstance(content, bytes), "parsed"
            read.append(content)
    if not read:
        raise last[0]
    if found[GROUP_COPY] is None and found[GROUP_METADATA] is not None:
        return _Group(read[0])
    first, other = read[0], read[-1]
    if first == other:  # or the only one that reads
        return _Group(first, _all_but(first, found))
    evidence = [_evidence(store, content) for content in read]
    for content, mine, its in zip(read, evidence, evidence[::-1], strict=True):
        if mine != its and all(one >= two for one, two in zip(mine, its, strict=True)):
            return _Group(content, _all_but(content, found))
    what = (
        f"differs from its copy {GROUP_COPY}, and no finished shard proves either; the same "
        f"`strainflow {_verb_of(found)}` again writes both anew"
    )
    return _Group(first, (Finding(GROUP_METADATA, what, mendable=False),), disputed=True)


def _evidence(store: Store, group: bytes) -> tuple[int, ...]:
    """What speaks for group metadata that no sound manifest records; more is better, in each."""
    document = parse_json(group, "")
    children = children_files(document)
    there = zip(children.values(), store.contents(list(children), forbidden=True), strict=True)
    (psd,) = store.contents([PSD_CHUNK], forbidden=True)
    identity = blake3.blake3(group).hexdigest().encode()
    named = 0
    for name in store.names(MANIFEST_FOLDER):
        if name[:1].isdigit():  # damaged ones
            (content,) = store.contents([f"{MANIFEST_FOLDER}/{name}"], forbidden=True)
            named += isinstance(content, bytes) and identity in content
    return (
        canonical_json(document) == group,
        sum(wanted == found for wanted, found in there),
        isinstance(psd, bytes) and is_recorded_psd(psd, document),
        named,
    )


def _all_but(good: bytes, found: Mapping[str, bytes | Unreadable | None]) -> tuple[Finding, ...]:
    """What is wrong with the metadata or their copy, given those that are as they were written."""
    return tuple(_altered(path, data) for path, data in found.items() if data != good)


def _verb_of(found: Mapping[str, bytes | Unreadable | None]) -> str:
    """The verb that wrote a data set, by the first of its metadata that say what it is."""
    for path, content in found.items():
        with suppress(InputError, DamagedDataError):
            return schema_from_metadata(parse_json(content, path), "").verb
    return "simulate"


def _altered(path: str, content: bytes | Unreadable | None) -> Finding:
    """Say what is wrong with a file that has not the bytes that it should have."""
    if isinstance(content, Unreadable):
        return Finding(path, str(content), mendable=not content.forbidden)
    return Finding(path, "is missing" if content is None else "is not as it was written")


def _missing_shards(schema: Schema, finished: list[int]) -> Iterator[Finding]:
    """One finding for each run of shards that have no manifest."""
    before = -1
    for shard in (*finished, schema.shards):
        first, last = before + 1, shard - 1
        if first <= last:
            events = f"{schema.events_of(first).start} to {schema.events_of(last).stop - 1}"
            what = "is missing, so the shard is not finished"
            if first < last:
                what = f"and those up to {manifest_path(last)} are missing: not finished"
            yield Finding(manifest_path(first), f"{what} (events {events})", first)
        before = shard


def _other_files(store: Store, schema: Schema, known: set[str]) -> Iterator[Finding]:
    """What no writer of ours leaves behind: other files, empty folders, and links."""
    growing = store.is_being_written()
    for entry in store.entries():
        path = entry.path
        if entry.kind == "link":
            yield Finding(path, LINK, mendable=False)
        elif entry.kind == "closed folder":
            yield Finding(f"{path}/", str(Unreadable(entry.why)), mendable=False)
        elif entry.kind == "empty folder":
            if not is_folder_of_ours(path):
                yield Finding(f"{path}/", FOREIGN, mendable=False)
        elif path in known or _is_of_a_shard(path, schema):
            continue
        elif not is_partial_of_ours(path):
            yield Finding(path, FOREIGN, mendable=False)
        elif not growing:
            yield Finding(path, "was left by a writer that died")


def _is_of_a_shard(path: str, schema: Schema) -> bool:
    digits = next((part for part in path.replace(".json", "").split("/") if part.isdecimal()), "")
    if not digits or len(digits) > 18:
        return False
    shard = int(digits)
    return shard < schema.shards and path in (*shard_files(shard).values(), manifest_path(shard))
