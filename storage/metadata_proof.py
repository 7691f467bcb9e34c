"""Which of the group's metadata and their copy is as it was written, and how one knows.

The group's metadata say what a data set is, so nothing above them can prove them: the manifests of
finished shards do, each of which records their digest. Where there is none yet, what they say
themselves and what lies beside them is evidence for the one or the other.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import blake3

from storage.dataset import is_recorded_psd
from storage.documents import canonical_json, parse_json, sealed_document
from storage.errors import DamagedDataError, InputError, Unreadable
from storage.finding import Finding, altered
from storage.metadata import children_files, schema_from_metadata
from storage.schema import GROUP_COPY, GROUP_METADATA, MANIFEST_FOLDER, PSD_CHUNK
from storage.urls import Store


@dataclass(frozen=True)
class Group:
    """The group's metadata, or the copy of them, whichever is as it was written.

    Attributes:
        content: Their bytes.
        findings: What is wrong with either.
        identity: Their digest, if a manifest records it.
        disputed: As of `storage.inventory.Inventory`.
    """

    content: bytes
    findings: tuple[Finding, ...] = ()
    identity: str | None = None
    disputed: bool = False


def group_metadata(store: Store) -> Group:
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
    return Group(sound[0], _all_but(sound[0], found), identity)


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


def _without_proof(store: Store, found: Mapping[str, bytes | Unreadable | None]) -> Group:
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
        return Group(read[0])
    first, other = read[0], read[-1]
    if first == other:  # or the only one that reads
        return Group(first, _all_but(first, found))
    evidence = [_evidence(store, content) for content in read]
    for content, mine, its in zip(read, evidence, evidence[::-1], strict=True):
        if mine != its and all(one >= two for one, two in zip(mine, its, strict=True)):
            return Group(content, _all_but(content, found))
    what = (
        f"differs from its copy {GROUP_COPY}, and no finished shard proves either; the same "
        f"`strainflow {_verb_of(found)}` again writes both anew"
    )
    return Group(first, (Finding(GROUP_METADATA, what, mendable=False),), disputed=True)


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
    return tuple(altered(path, data) for path, data in found.items() if data != good)


def _verb_of(found: Mapping[str, bytes | Unreadable | None]) -> str:
    """The verb that wrote a data set, by the first of its metadata that say what it is."""
    for path, content in found.items():
        with suppress(InputError, DamagedDataError):
            return schema_from_metadata(parse_json(content, path), "").verb
    return "simulate"
