"""Every peer that is installed delivers our events, each once a pass, bit for bit.

Each peer reads in a process of its own: DataLoaders fork, beside which threads of others may hang.
"""

import json
import os
import subprocess
import sys
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from storage.bench.arrays import Memmap, random_groups
from storage.bench.conversion import stored_events
from storage.bench.peers import PEERS, Entry, contestants, whole_pass
from storage.encodings import ENCODINGS
from storage.errors import InputError

ROOT = Path(__file__).parents[2]
READ = ("float32", "int8", "float16", "int16+blosc")

# For each data set and number of workers two passes: the events' checksums, and what else matters.
READ_AS_A_PEER = """
import json, sys, warnings, zlib
from pathlib import Path
import numpy as np
from storage.bench.peers import contestants
from storage.dataset import read_schema
warnings.simplefilter("ignore")
name, scratch, *folders = sys.argv[1:]
(peer,), _ = contestants([name])
found = {}
for folder in folders:
    written = peer.prepare(Path(folder), read_schema(folder), Path(scratch))
    for workers in {peer.workers[0], 2} & set(peer.workers):
        for seed in (0, 1):
            events, sizes, types = [], [], set()
            for batch in peer.read(24, workers, seed):
                batch = np.asarray(batch)
                events += [zlib.crc32(strain.tobytes()) for strain in batch]
                sizes.append(len(batch))
                types.add(f"{batch.dtype} {batch.shape[1:]}")
            found[f"{folder} {workers} {seed}"] = [events, sizes, sorted(types), written]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def sets(build) -> dict:
    """Data sets whose last shard, and whose last run, is partial."""
    return {name: build(events=150, events_per_shard=40, encoding=ENCODINGS[name]) for name in READ}


def read_as(name: str, folders: list[Path], scratch: Path) -> dict[str, list]:
    """Let a peer read data sets in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", READ_AS_A_PEER, name, scratch, *folders],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def checksums(strain: np.ndarray) -> list[int]:
    return [zlib.crc32(event.tobytes()) for event in strain]


def lost_or_added(delivered: list[int], wanted: list[int]) -> bool:
    """Whether these are other events, or some of them more often."""
    return sorted(delivered) != sorted(wanted)


def test_the_comparison_notices_an_event_lost_repeated_or_altered(sets):
    wanted = checksums(sets["int8"].codes)
    assert len(set(wanted)) == 150
    assert not lost_or_added(wanted[::-1], wanted)
    assert lost_or_added(wanted[1:], wanted)
    assert lost_or_added([wanted[0], *wanted[:-1]], wanted)
    altered = sets["int8"].codes.copy()
    altered[70, 1, 9] += 1
    assert lost_or_added(checksums(altered), wanted)


@pytest.mark.parametrize("name", list(PEERS))
def test_a_peer_delivers_every_event_once_in_an_order_of_the_seed(name, sets, tmp_path):
    peers, missing = contestants([name])
    if not peers:
        pytest.skip(missing[0])
    found = read_as(name, [data.folder for data in sets.values()], tmp_path)
    for data in sets.values():
        wanted = checksums(data.codes)
        dtype, shape = data.codes.dtype, data.codes.shape[1:]
        passes = {key: what for key, what in found.items() if key.startswith(f"{data.folder} ")}
        assert len(passes) == 2 * len({peers[0].workers[0], 2} & set(peers[0].workers))
        for key, (events, sizes, types, written) in passes.items():
            assert not lost_or_added(events, wanted), key
            assert max(sizes) <= 24, key
            assert types == [f"{dtype} {shape}"], key
            assert written == 0 or written >= data.codes.nbytes, key
        one, other = (passes[f"{data.folder} {peers[0].workers[0]} {seed}"][0] for seed in (0, 1))
        assert one != other


def test_a_conversion_is_used_again_for_its_own_data_set_alone(sets, tmp_path):
    one, other = sets["float32"], sets["int8"]
    kept = tmp_path / "memmap/strain.raw"
    assert Memmap().prepare(one.folder, one.schema, tmp_path) == one.codes.nbytes
    first = kept.stat()
    assert Memmap().prepare(one.folder, one.schema, tmp_path) == one.codes.nbytes
    assert kept.stat().st_mtime_ns == first.st_mtime_ns
    assert Memmap().prepare(other.folder, other.schema, tmp_path) == other.codes.nbytes
    assert kept.read_bytes() == other.codes.tobytes()


def test_what_is_converted_is_what_is_stored(sets):
    for data in sets.values():
        events = [(strain.copy(), row.copy()) for strain, row in stored_events(data.folder)]
        assert np.array_equal(np.stack([strain for strain, _ in events]), data.codes)
        assert np.array_equal(np.stack([row for _, row in events]), data.parameters)


@pytest.mark.parametrize(("run", "largest"), [(1, 24), (8, 24), (32, 24), (None, 40)])
def test_groups_hold_every_event_once_and_end_with_their_shards(sets, run, largest):
    schema = sets["int8"].schema
    groups = random_groups(schema, run, 24, seed=3)
    assert sorted(event for group in groups for part in group for event in part) == [*range(150)]
    assert max(sum(map(len, group)) for group in groups) == largest
    assert all(part[0] // 40 == part[-1] // 40 for group in groups for part in group)


class Forgetful(Memmap):
    """A reader that loses its last batch, as loaders with `drop_last` do."""

    def read(self, batch_size, workers, seed):
        *batches, _ = super().read(batch_size, workers, seed)
        yield from batches


@pytest.mark.parametrize("kind", [Memmap, Forgetful])
def test_a_peer_that_loses_events_is_no_contestant(kind, sets, tmp_path):
    data, peer = sets["int8"], kind()
    peer.prepare(data.folder, data.schema, tmp_path)
    refused = pytest.raises(RuntimeError, match="delivered 144 of 150 events")
    with refused if kind is Forgetful else nullcontext():
        whole_pass(peer, 150, batch_size=24, workers=0, seed=0)


def test_a_peer_that_is_not_installed_is_left_out_with_a_word_on_how_to_install_it(monkeypatch):
    monkeypatch.setitem(PEERS, "rare", Entry("storage.bench.rare:Rare", ("no_such_package",)))
    peers, missing = contestants(["memmap-by-hand", "rare"])
    assert [peer.name for peer in peers] == ["np.memmap, by hand"]
    assert missing == [
        "rare is left out: no_such_package is not installed; pip install 'strainflow[bench]'"
    ]


def test_an_unknown_peer_is_refused_and_the_known_ones_are_named():
    with pytest.raises(InputError, match=r"got 'petastorm', known are webdataset, .*tensorstore"):
        contestants(["petastorm"])
