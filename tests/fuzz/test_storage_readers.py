"""Mutated files of a data set: each reader gives a result, or one of our two errors."""

import hashlib
import json
import os
import random
import sys
from functools import partial
from pathlib import Path

import blake3
import google_crc32c
import numpy as np
import pytest
from campaign import campaign, defect_of
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutate_bytes, mutate_json
from small_sets import small_set
from streams import open_stream

from storage.arrays import as_bytes
from storage.dataset import (
    create_dataset,
    open_dataset,
    read_optimal_snr,
    read_parameters,
    read_psd,
    read_schema,
)
from storage.documents import sealed_json
from storage.errors import DamagedDataError, InputError
from storage.info import describe, summary
from storage.inventory import take_inventory
from storage.lease import Holder
from storage.local import LocalStore
from storage.manifest import finished_shards, parse_manifest, require_sound
from storage.posterior import Posterior
from storage.results import read_posterior, write_posterior
from storage.shard_reader import ShardReader, read_index
from storage.tar import BLOCK, parse_tar_header, tar_header, walk_tar
from storage.verify import look_at_lengths, verify_shard

COUNTS = [1, pytest.param(3, marks=pytest.mark.slow)]  # times as many inputs
MANIFEST, STRAIN = "manifest/000001.json", "strain/c/1/0/0"


@pytest.fixture(scope="module", params=["float32", "int16+blosc"])
def data(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "events.zarr"
    return small_set(folder, request.param)


@pytest.fixture(params=COUNTS)
def times(request):
    return request.param


def shown(read, what):
    """What a campaign prints of an input."""
    read.shown = what
    return read


def with_sum(header: bytes) -> bytes:
    """A tar header whose checksum fits again."""
    padded = header[:BLOCK].ljust(BLOCK, b"\0")
    blank = padded[:148] + b" " * 8 + padded[156:]
    return blank[:148] + f"{sum(blank):06o}\0 ".encode() + blank[156:]


class Bytes:
    """A file in memory."""

    piece = 2**16

    def __init__(self, content: bytes) -> None:
        self.content, self.length = content, len(content)

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]

    def read_into(self, offset: int, buffer: memoryview) -> int:
        found = self.read(offset, len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        pass


def test_any_tar_header_is_ours_or_refused(times):
    starts = [tar_header(f"{n:09d}.{kind}", n) for n in (0, 7) for kind in ("json", "strain.npy")]

    def attempt(draw):
        header = mutate_bytes(draw, draw.choice(starts), starts)
        if draw.random() < 0.7:
            header = with_sum(header)

        def read():
            name, size = parse_tar_header(header)
            assert "/" not in name, name
            assert ".." not in name, name
            assert size >= 0, size

        return shown(read, header)

    campaign("tar header", 2000 * times, attempt)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=100), st.integers(0, 2**33 - 1), st.binary(min_size=1, max_size=1))
def test_no_name_in_a_tar_header_leads_out_of_a_folder(name, size, kind):
    header = with_sum(name.ljust(100, b"\0") + tar_header("", size)[100:156] + kind + bytes(355))
    try:
        found, _ = parse_tar_header(header)
    except DamagedDataError:
        return
    assert kind == b"0"
    assert os.path.basename(found) == found
    assert not found.startswith(".")


@pytest.mark.parametrize(
    "name",
    ["../000000001.json", "/000000001.json", "000000001.json/..", "..", "000000001..", "a/b"],
)
def test_a_tar_member_that_leads_out_of_the_folder_is_refused(name):
    with pytest.raises(DamagedDataError):
        parse_tar_header(tar_header(name, 10))
    assert list(walk_tar(Bytes(tar_header(name, 10) + bytes(BLOCK)), "", 100)) == []


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6", b"x", b"L", b"\0"])
def test_a_tar_member_that_is_no_plain_file_is_refused(kind):
    header = tar_header("000000001.json", 0)
    with pytest.raises(DamagedDataError):
        parse_tar_header(
            with_sum(header[:156] + kind + b"../../x".ljust(100, b"\0") + header[257:])
        )


def test_a_walk_through_any_tar_ends_within_it(data, times):
    content = (data.folder / STRAIN).read_bytes()

    def attempt(draw):
        altered = mutate_bytes(draw, content)
        if draw.random() < 0.5:
            header = with_sum(mutate_bytes(draw, content[:BLOCK]))
            altered = header + altered[BLOCK:]

        def read():
            for offset, length in walk_tar(Bytes(altered), "", 10**15):
                assert 0 < offset <= offset + length <= len(altered)

        return shown(read, (len(altered), altered[:BLOCK]))

    campaign("tar walk", 1000 * times, attempt)


def test_any_shard_is_read_or_refused(data, tmp_path, times):
    """With the index's checksum made to fit, and the event's known or not."""
    schema, content = data.schema, (data.folder / STRAIN).read_bytes()
    slots = schema.events_per_shard
    file = tmp_path / "shard"
    known = json.loads((data.folder / MANIFEST).read_bytes())["crc32c"]
    buffers = np.empty((slots, *schema.strain_shape), schema.encoding.dtype)
    compressed = schema.encoding.compressed

    def attempt(draw):
        index = mutate_bytes(draw, content[-(16 * slots + 4) :])
        altered = mutate_bytes(draw, content) if draw.random() < 0.3 else content
        if draw.random() < 0.7:
            index = (index[: 16 * slots]).ljust(16 * slots, b"\xff")
            index += google_crc32c.value(index).to_bytes(4, "little")
            altered = altered[: -(16 * slots + 4)] + index
        file.write_bytes(altered)
        # A frame is decompressed only behind its checksum.
        sums = known if compressed or draw.random() < 0.5 else None

        def read_all():
            reader = ShardReader(LocalStore(tmp_path), "shard", slots, schema.encoding, sums)
            for row in range(slots):
                for count in (1, slots - row):
                    try:
                        reader.read(row, [as_bytes(codes) for codes in buffers[:count]])
                    except DamagedDataError:
                        continue

        return shown(read_all, altered[-(16 * slots + 4) :])

    campaign("shard", 750 * times, attempt)


def test_any_index_is_read_or_refused(times):
    good = bytes(range(48))
    good += google_crc32c.value(good).to_bytes(4, "little")

    def attempt(draw):
        content = mutate_bytes(draw, good)
        return shown(partial(read_index, Bytes(content), draw.choice((1, 3, 10**9)), ""), content)

    campaign("index", 1500 * times, attempt)


def look_at(folder: Path, psd: np.ndarray, schema) -> list:
    """Every reader of a folder that is a data set or was one."""

    def informed():
        facts = describe(folder)
        summary(facts)
        json.dumps(vars(facts))

    def verified():
        inventory = take_inventory(folder)
        list(look_at_lengths(folder, inventory))
        for shard in inventory.finished:
            verdict = verify_shard(folder, inventory.group, shard)
            list(map(str, verdict.findings))

    def streamed():
        stream = open_stream(folder, batch_size=2, growing=True, prefetch=0)
        len(stream)

    def opened():
        dataset = open_dataset(folder, growing=True)
        dataset["parameters"].isel(event=0).values  # noqa: B018  # reads

    return [
        lambda: read_schema(folder).encodings_before,
        informed,
        verified,
        streamed,
        opened,
        lambda: require_sound(folder, read_schema(folder)),
        lambda: finished_shards(folder, read_schema(folder)),
        lambda: read_psd(folder),
        lambda: read_parameters(folder),
        lambda: read_optimal_snr(folder),
        lambda: create_dataset(folder, schema, psd),
    ]


def restored(folder: Path, files: dict[str, bytes], changed: set[str]) -> None:
    restore(folder, {path: files[path] for path in changed} if changed else files)
    changed.clear()


def restore(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def resealed(content: bytes, identity: str | None) -> bytes:
    """A manifest whose own digest, and that of its data set, fit again."""
    try:
        document = json.loads(content)
        if identity is not None:
            document["dataset"] = identity
        return sealed_json(document)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return content


def attempt_on(data, files, where):
    """Mutate some files of a data set, perhaps make digests fit, and read it in some way."""

    changed = set[str]()

    def attempt(draw: random.Random):
        restored(data.folder, files, changed)
        identity = None
        path = draw.choice(where)
        mutate = mutate_json if path.endswith(".json") else mutate_bytes
        altered = {path: mutate(draw, files[path])}
        if path.endswith("zarr.json") and "/" not in path:
            if draw.random() < 0.5:
                altered["manifest/dataset.json"] = altered[path]
            identity = blake3.blake3(altered[path]).hexdigest()
        fits = draw.random() < 0.6
        if fits and (identity or path.startswith("manifest/0")):
            for name in files:
                if name.startswith("manifest/0"):
                    altered[name] = resealed(altered.get(name, files[name]), identity)
        restore(data.folder, altered)
        readers = look_at(data.folder, data.psd, data.schema)
        number = draw.choice((*range(len(readers) - 1), *range(4), len(readers) - 1))
        if number < len(readers) - 1:  # the last one creates the data set, so writes any file
            changed.update(altered)
        return shown(readers[number], (path, number, fits, altered[path]))

    return attempt


@pytest.mark.parametrize(
    ("what", "count"),
    [("zarr.json", 500), ("manifest", 500), ("shard", 150)],
)
def test_any_data_set_is_read_or_refused(data, what, count, times):
    files = snapshot(data.folder)
    where = {
        "zarr.json": ["zarr.json"],
        "manifest": [MANIFEST],
        "shard": [STRAIN, "parameters/c/1/0", "optimal_snr/c/1/0", "psd/c/0/0", "strain/zarr.json"],
    }[what]
    try:
        campaign(f"data set {what}", count * times, attempt_on(data, files, where))
    finally:
        restore(data.folder, files)


def test_any_manifest_is_read_or_refused(data, times):
    content = (data.folder / MANIFEST).read_bytes()

    def attempt(draw):
        altered = mutate_json(draw, content)

        def read():
            found = parse_manifest(altered, data.schema, 1, "manifest")
            assert found.shard == 1
            assert f"{found.bytes / 1e9:.3f} {found.last_event:,} {found.largest_snr_loss:g}"

        return shown(read, altered)

    campaign("manifest", 1500 * times, attempt)


def test_any_lease_is_read_or_taken_for_nothing(times):
    start = Holder.here().to_bytes()

    def attempt(draw):
        content = mutate_json(draw, start)

        def read():
            holder = Holder.parse(content)
            if holder is not None:
                assert holder.lives in (True, False)
                str(holder).encode(errors="replace")

        return shown(read, content)

    campaign("lease", 1500 * times, attempt)


def test_any_posterior_file_is_read_or_refused(tmp_path, times):
    draws = np.arange(12.0).reshape(6, 2)
    posterior = Posterior(3, ("a", "b"), draws, draws[:, 0], {"a": 1.0}, {"a": "0.5"}, 9.0, {})
    path = write_posterior(tmp_path, posterior)
    start = path.read_bytes()

    def attempt(draw):
        content = mutate_json(draw, start)
        path.write_bytes(content)

        def read():
            found = read_posterior(path)
            assert found.samples.shape == (len(found.log_prob), len(found.names))
            assert found.label

        return shown(read, content)

    campaign("posterior", 1500 * times, attempt)


def test_a_manifest_that_lists_other_files_never_opens_them(data):
    files = snapshot(data.folder)
    canary = data.folder.parent.parent / "canary"
    canary.write_text("not ours")
    opened = []
    watching = [True]

    def watch(event, arguments):
        if watching[0] and event == "open" and "canary" in str(arguments[0]):
            opened.append(arguments[0])

    sys.addaudithook(watch)  # for good: there is no way to take it out
    names = (
        "../../canary",
        str(canary),
        "strain/../../../canary",
        "..",
        "strain/c/1/0/0/../../canary",
    )
    try:
        open(canary).close()
        assert opened.pop()  # it sees
        for name in names:
            for others in (True, False):
                document = json.loads(files[MANIFEST])
                facts = {"bytes": 8, "blake3": hashlib.sha256(b"").hexdigest()}
                kept = document["files"] if others else dict(list(document["files"].items())[1:])
                document["files"] = {**kept, name: facts}
                restore(data.folder, {**files, MANIFEST: sealed_json(document)})
                for read in look_at(data.folder, data.psd, data.schema):
                    assert defect_of(read) is None
                with pytest.raises(DamagedDataError):
                    require_sound(data.folder, data.schema)
        assert opened == []
    finally:
        watching[0] = False
        restore(data.folder, files)


def test_the_campaign_finds_what_is_not_ours():
    def attempt(draw):
        error = draw.choice((InputError, DamagedDataError, KeyError))

        def read():
            raise error("x")

        return read

    with pytest.raises(AssertionError, match="KeyError at"):
        campaign("self", 20, attempt)
