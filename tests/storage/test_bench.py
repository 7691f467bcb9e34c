"""The measurements measure what they say; the figures themselves are for quiet machines."""

import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jsonargparse import ArgumentParser

import strainflow
from model.config import TrainConfig
from storage.bench import compare, feed, limits, read, write
from storage.bench.feed_step import FedStep
from storage.bench.measure import Contestant, Rate, alternate, machine, milliseconds, ratio
from storage.bench.report import draw_rates
from storage.bench.verdict import _WINDOW, doubt_of_warmth, verdict_of_reading
from storage.encodings import ENCODINGS
from storage.errors import InputError
from storage.order import Window
from storage.stream_config import StreamConfig


@pytest.fixture(scope="session", params=["int16", "int16+blosc"])
def data(build, request):
    """96 events of 24 kB in six shards."""
    return build(events=96, events_per_shard=16, samples=4096, encoding=ENCODINGS[request.param])


def rate_of(name, rates, limit=False, **setting):
    return Rate(
        name,
        setting,
        limit,
        float(np.median(rates)),
        min(rates),
        max(rates),
        1.0,
        1e3,
        0.1,
        tuple(rates),
    )


# Measuring


def test_contestants_take_turns_and_are_prepared_outside_the_clock():
    calls = []

    def contestant(name):
        return Contestant(
            name,
            lambda: calls.append(name) or (10**9, 0.5),
            before=lambda: calls.append(f"before {name}"),
        )

    found = alternate([contestant("a"), contestant("b")], 2, event_bytes=1000, stored_share=0.25)
    assert calls == 2 * ["before a", "a", "before b", "b"]
    for rate in found:
        assert rate.gigabytes_per_second == rate.slowest == rate.fastest == 2.0
        assert rate.disk_gigabytes_per_second == 0.5
        assert rate.events_per_second == 2e6


def test_a_ratio_is_taken_within_each_round():
    """A disk that becomes three times slower for both changes nothing."""
    assert ratio(rate_of("a", [3, 1, 2]), rate_of("b", [6, 2, 4])) == 0.5
    assert ratio(rate_of("a", [3, 1, 2]), rate_of("b", [6, 1, 2])) == 1.0


def test_what_was_dropped_from_the_page_cache_is_gone_and_comes_back(data):
    files = limits.strain_files(data.folder, range(6))
    limits.read_plainly(files, 1)
    assert limits.resident_share(files[0]) == 1
    limits.drop_from_cache(files)
    assert limits.resident_share(files[0]) == 0
    limits.read_plainly(files, 1)
    assert limits.resident_share(files[0]) == 1


def test_the_file_of_which_least_is_in_memory_tells_whether_passes_are_warm(data):
    files = limits.strain_files(data.folder, range(6))
    limits.read_plainly(files, 1)
    assert limits.least_resident(files) == 1
    limits.drop_from_cache(files[3:4])
    assert limits.least_resident(files) == 0


@pytest.mark.parametrize(("resident", "words"), [(0.5, ["NOT WARM"]), (0.995, []), (1.0, [])])
def test_passes_that_are_not_warm_are_said_not_to_be(resident, words):
    assert [said[:8] for said in doubt_of_warmth(resident)] == words
    first, *_ = verdict_of_reading(replace(reading(0.9, "plain"), resident=resident))
    assert first.startswith("NOT WARM") == bool(words)


def test_plain_reads_and_copies_count_what_they_move(data):
    files = limits.strain_files(data.folder, range(6))
    size = sum(path.stat().st_size for path in files)
    assert limits.read_plainly(files, 1) == limits.read_plainly(files, 4) == size
    room = np.zeros(2 * limits.PIECE, np.uint8)
    assert limits.read_plainly(files, 2, room) == size
    assert room[: limits.PIECE].any()
    assert room[limits.PIECE :].any()
    assert limits.MemoryCopy(1000, 3)() == 2000


def test_plain_writes_past_the_page_cache_leave_it_empty_and_count_what_they_write(tmp_path):
    lengths = [3 * limits.PAGE + 5, limits.PIECE + limits.PAGE]
    if not limits.can_write_past_cache(tmp_path):
        pytest.skip("this file system has no O_DIRECT")
    assert not list(tmp_path.iterdir())
    files = [tmp_path / f"plain-{number}" for number in range(2)]
    assert limits.write_plainly(tmp_path, lengths, past_cache=True) == sum(lengths) - 5
    assert [limits.resident_share(path) for path in files] == [0, 0]
    assert limits.write_plainly(tmp_path, lengths, past_cache=False) == sum(lengths)
    assert [path.stat().st_size for path in files] == lengths
    assert limits.resident_share(files[1]) == 1
    limits.remove_plain_files(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no file system in memory here")
def test_writing_is_measured_on_a_file_system_without_o_direct_too():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        able = limits.can_write_past_cache(Path(folder))
        config = write.WriteBenchConfig(
            encodings=("int8",), events=8, events_per_shard=4, samples=2048, rounds=1
        )
        result = write.bench_write(config, folder)
    assert result.plain_writes == (write.PAST if able else write.THROUGH)
    assert len(result.rates) == 2 + able


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.5, "its limit is encoding, compressing and digesting (0.50 of plain writes past"),
        (0.9, "its limit is the disk (0.90"),
        (1.3, "it is at the disk's limit (1.30"),
    ],
)
def test_the_verdict_on_writing_names_what_it_is_held_against(share, words):
    ours = rate_of("strainflow, int8", [2.0], encoding="int8")
    (said,) = write._verdict([ours], {"int8": share}, write.PAST)
    assert words in said


def test_decompression_alone_gives_the_events_of_the_set(data):
    if not data.schema.encoding.compressed:
        pytest.skip("nothing to decompress")
    decode = limits.DecodeAlone(data.folder, data.schema, 8, 2)
    assert decode(8) == 8 * data.schema.event_bytes
    rows = [np.frombuffer(row, "<i2").reshape(3, 4096) for row in decode._rows]
    assert np.array_equal(rows, data.codes[:8])


@pytest.mark.skipif(not limits.has_fio(), reason="fio is not installed")
@pytest.mark.parametrize("depth", limits.FIO_DEPTHS)
@pytest.mark.parametrize("random", [False, True])
def test_fio_reads_the_files_that_it_is_given(data, monkeypatch, random, depth):
    monkeypatch.setattr(limits, "FIO_SECONDS", 1)
    size, seconds = limits.fio(limits.strain_files(data.folder, range(6)), 2**16, random, depth)
    assert size > 0
    assert 0.5 < seconds < 5


def test_the_limit_of_the_disk_is_fios_best_depth_in_the_order_that_is_held_against_it():
    def disk(rates, order, depth):
        return rate_of(f"fio, {order}, depth {depth}", rates, True, order=order, depth=depth)

    plain = rate_of("plain 16 MB reads, 2 threads", [9.0], limit=True)
    fios = [disk([3.0], "sequential", 8), disk([2.0], "sequential", 32)]
    fios += [disk([1.0], "random", 8), disk([4.0], "random", 32)]
    ours = [rate_of(order, [2.0], order=order) for order in ("global", "as stored")]
    shares, names = read._held_against_limits([], [*fios, plain, *ours])
    assert shares == {"cold, global": 0.5, "cold, as stored": pytest.approx(2 / 3)}
    assert list(names.values()) == ["fio, random, depth 32", "fio, sequential, depth 8"]
    shares, _ = read._held_against_limits([], [plain, *ours])
    assert shares == pytest.approx({"cold, global": 2 / 9, "cold, as stored": 2 / 9})


def test_the_machine_is_described_without_its_name(tmp_path):
    found = machine(tmp_path)
    assert found["cores"] == os.cpu_count()
    assert found["versions"]["numpy"] == np.__version__
    assert os.uname().nodename not in json.dumps(found)


# The verbs


def run(capsys, *words):
    code = strainflow.main(words)
    return code, capsys.readouterr()


def test_bench_read_reports_every_order_against_its_limit(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(limits, "FIO_SECONDS", 1)
    words = ("bench", "read", str(data.folder), "--rounds=1", "--batch-size=8", "--threads=2")
    code, said = run(capsys, *words, f"--out={tmp_path}", "--json")
    assert code == 0
    report = json.loads(said.out)
    assert json.loads((tmp_path / "read.json").read_text()) == report
    assert (tmp_path / "read.png").stat().st_size > 10_000
    expected = {f"{s}, {o}" for s in ("warm", "cold") for o in ("global", "windowed", "as stored")}
    if not data.schema.encoding.compressed:
        expected |= {f"warm, {o}, same memory" for o in ("global", "windowed", "as stored")}
    assert set(report["of_limit"]) == expected
    assert all(share > 0 for share in report["of_limit"].values())
    names = [rate["name"] for rate in report["cold"]]
    compressed = data.schema.encoding.compressed
    assert any("past the page cache" in name for name in names) != compressed
    assert any(name.startswith("fio") for name in names) == limits.has_fio()
    assert report["gigabytes"] == pytest.approx(96 * data.schema.event_bytes / 1e9)
    assert any("feeds" in line for line in report["verdict"])
    assert report["resident"] == 1


def test_a_disk_without_a_data_set_is_measured_with_one_of_noise_that_is_removed(tmp_path, capsys):
    place = tmp_path / "noise.zarr"
    flags = ("--make=0.02", "--encoding=int8", "--batches=20", "--batch-size=16", "--rounds=1")
    code, said = run(
        capsys, "bench", "feed", str(place), *flags, "--search=false", f"--out={tmp_path}", "--json"
    )
    report = json.loads(said.out)
    assert code in (0, 1)  # busy or not: other tests may run beside this one
    assert (report["encoding"], report["batch_size"]) == ("int8", 16)
    assert not place.exists()


def test_bench_write_measures_each_encoding_and_leaves_nothing_behind(tmp_path, capsys):
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    words = ["--events=8", "--events-per-shard=4", "--samples=2048", "--rounds=2"]
    code, said = run(capsys, "bench", "write", f"--folder={disk}", f"--out={out}", *words, "--json")
    assert code == 0
    report = json.loads(said.out)
    assert set(report["of_plain_writes"]) == set(ENCODINGS)
    past = report["plain_writes"] == "past the page cache"
    names = [rate["name"] for rate in report["rates"] if rate["name"].endswith(" int8")]
    assert names[-1] == "strainflow, int8"
    assert len(names) == 2 + past
    assert all(report["plain_writes"] in line for line in report["verdict"])
    assert report["bytes_per_event"]["int8"] < report["bytes_per_event"]["float32"]
    assert not list(disk.iterdir())
    assert (out / "write.png").is_file()


def test_bench_feed_tells_a_busy_accelerator_from_a_starved_one(data, tmp_path, capsys):
    words = (
        "bench",
        "feed",
        str(data.folder),
        f"--out={tmp_path}",
        "--batch-size=8",
        "--batches=20",
        "--rounds=1",
        "--threads=2",
        "--prefetch=2",
        "--search=false",
    )
    code, said = run(capsys, *words, "--step=0.05")
    assert code == 0
    assert "is kept busy" in said.out
    code, said = run(capsys, *words, "--step=0.000001")
    assert code == 1
    assert "is STARVED" in said.out


def test_a_cold_disk_is_dropped_outside_the_clock_and_first_batches_do_not_count(data, monkeypatch):
    """With 12 batches a pass, of which 11 count, and a drop that takes a second."""
    drop, dropped, taken = limits.drop_from_cache, [], []

    def slowly(files):
        time.sleep(1)
        dropped.append(len(taken))
        drop(files)

    monkeypatch.setattr(limits, "drop_from_cache", slowly)
    config = feed.FeedBenchConfig(
        batch_size=8, batches=25, rounds=1, threads=2, prefetch=2, cold=True
    )
    real = FedStep(step=lambda batch: taken.append(batch.event.tolist()))
    result = feed.bench_feed(config, data.folder, real)
    assert dropped == [0, 0, 12, 24], "the first before what is not measured"
    assert len(taken) == 25 + 3
    assert sorted(event for batch in taken[:12] for event in batch) == list(range(96))
    assert max(result.first_batch, result.wait_p99) < 1
    assert "first batch of each pass is not counted" in feed.summary(result)


def test_a_cold_pass_of_one_batch_is_refused(data):
    config = feed.FeedBenchConfig(batch_size=64, cold=True)
    with pytest.raises(InputError, match="two batches are needed in a pass, of 96 events"):
        feed.bench_feed(config, data.folder)


@pytest.mark.slow
def test_the_shortest_step_that_is_fed_lies_between_starving_and_busy(build, monkeypatch):
    """With a stream that takes 2 ms for a batch, and does not read ahead."""
    data = build(events=96, events_per_shard=16)
    monkeypatch.setattr(feed, "SEARCH_STEPS", 3)
    from storage.stream import EventStream

    epochs = EventStream.epochs

    def slow(stream, stop=None):
        for batch in epochs(stream, stop):
            time.sleep(0.002)
            yield batch

    monkeypatch.setattr(EventStream, "epochs", slow)
    config = feed.FeedBenchConfig(
        step=0.004, batch_size=8, batches=20, rounds=1, threads=2, prefetch=1, search=True
    )
    result = feed.bench_feed(config, data.folder)
    assert result.utilisation < 0.8
    assert result.wait_p50 > 0.002
    assert result.shortest_step > 0.002 * feed.BUSY / (1 - feed.BUSY) / 2


@pytest.mark.parametrize(
    "peers",
    [
        ["zarr-runs", "memmap-by-hand"],
        pytest.param(["webdataset", "h5py"], marks=pytest.mark.slow),  # they start workers
    ],
)
def test_bench_compare_measures_who_is_asked_for_beside_ours(build, tmp_path, capsys, peers):
    pytest.importorskip("torch")
    data = build(events=96, events_per_shard=16)
    words = ["bench", "compare", str(data.folder), f"--out={tmp_path}", "--batch-size=8"]
    words += ["--rounds=1", "--threads=2", f"--peers=[{','.join(peers)}]", "--json"]
    code, said = run(capsys, *words)
    assert code == 0
    report = json.loads(said.out)
    assert len(report["times"]) == 2
    assert report["resident"] == 1
    assert [rate["name"].split(",")[0] for rate in report["rates"]][:2] == [
        compare.PLAIN,
        compare.OURS,
    ]
    copied = max(report["copies"].values()) - 96 * data.schema.event_bytes
    assert 0 <= copied < 10_000, "a format's own bytes"
    assert not list(data.folder.parent.glob("strainflow-bench-*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("read", "--rounds=0"), "rounds: got 0, at least 1 is needed"),
        (("read", "--gigabytes=0"), "gigabytes: got 0.0, more than 0 is needed"),
        (("feed", "--step=0"), "step: got 0.0 s, more than 0 is needed"),
        (("feed", "--batches=3"), "batches: got 3, at least 20 are needed"),
        (("feed", "--batch-size=1000"), "batch_size: got 1000, the data set has 96 events"),
        (("compare", "--peers=[tfrecord]"), "peers: got 'tfrecord', known are webdataset,"),
        (("read", "--make=1"), "is there already; --make wants the name of a folder to create"),
        (("read", "--make=-1"), "make: got -1 GB at"),
        (("compare", "--encoding=int8"), "encoding: is that of a set to be made; give --make"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(data, capsys, words, message):
    verb, *flags = words
    code, said = run(capsys, "bench", verb, str(data.folder), *flags)
    assert (code, said.out) == (2, "")
    assert message in said.err


def test_writing_into_no_folder_is_refused(tmp_path, capsys):
    code, said = run(capsys, "bench", "write", f"--folder={tmp_path / 'none'}")
    assert code == 2
    assert "no folder there" in said.err


# Verdicts


def reading(share, limit, encoding="int8", stream=5.0):
    ours = rate_of("EventStream, global, 2 threads", [stream], order="global")
    return read.ReadBench(
        "x.zarr",
        encoding,
        1.0,
        256,
        {"warm": 2, "cold": 2},
        (ours,),
        (ours,),
        {"warm, global": share, "cold, global": share},
        {"warm, global": limit, "cold, global": limit},
        1.0,
        20.0,
        1,
        {},
    )


@pytest.mark.parametrize(
    ("share", "limit", "encoding", "words"),
    [
        (0.95, "fio, an event from anywhere", "float32", "the disk (0.95"),
        (0.5, "fio, an event from anywhere", "int8", "the loader: 0.50"),
        (1.31, "fio, an event from anywhere", "int8", "It is at the disk's limit (1.31 of fio"),
        (0.74, "decompression alone, 2 threads", "int16+blosc", "Most of it is decompression (0"),
        (0.9, "decompression alone, 2 threads", "int16+blosc", "decompression (0.90"),
    ],
)
def test_the_verdict_names_the_stage_that_is_the_limit(share, limit, encoding, words):
    said = "\n".join(verdict_of_reading(reading(share, limit, encoding)))
    assert words in said
    assert "a step for 256 events may be as short as 256 ms" in said


@pytest.mark.parametrize(
    ("share", "limit"), [(0.79, "plain 16 MB reads"), (0.72, "decompression alone, 2 threads")]
)
def test_what_others_reach_too_is_no_bug_to_report(share, limit):
    assert "report it" in "\n".join(verdict_of_reading(reading(0.3, limit)))
    assert "report it" not in "\n".join(verdict_of_reading(reading(share, limit)))


def test_a_step_of_a_small_batch_is_not_said_to_take_no_time():
    assert [milliseconds(t) for t in (2.5, 0.0123, 0.00994, 0.00043)] == [
        "2500 ms",
        "12 ms",
        "9.9 ms",
        "0.43 ms",
    ]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"threads": 8}, "1.5 times as fast as that: `train --stream.threads 8`."),
        ({"past_cache": True}, "`train --stream.past_cache true`."),
        ({"order": "windowed"}, "--stream.window.shards 16 --stream.window.events 16`."),
        ({"order": "as stored"}, "`EventStream(shuffle=False)`"),
    ],
)
def test_what_is_faster_than_the_default_is_said_with_the_flag_that_gets_it(setting, words):
    common = {"order": "global", "threads": 2, "batch_size": 256}
    default = rate_of("EventStream, global, 2 threads", [2.0], **common)
    better = rate_of("another", [3.0], **{**common, **setting})
    bench = replace(reading(0.9, "plain"), warm=(default, better), cold=())
    *_, said = verdict_of_reading(bench)
    assert words in said


def test_a_batch_of_another_size_is_no_faster_way_to_read_the_same():
    common = {"order": "global", "threads": 2}
    default = rate_of("EventStream, global, 2 threads", [2.0], **common, batch_size=256)
    other = rate_of("batches of 64", [3.0], **common, batch_size=64)
    bench = replace(reading(0.9, "plain"), warm=(default, other), cold=())
    assert not any("times as fast" in sentence for sentence in verdict_of_reading(bench))


def test_the_flags_that_are_named_are_flags_of_train():
    assert Window() == Window(16, 16)
    words = [*" ".join(_WINDOW).split(), "--stream.threads=8", "--stream.past_cache=true"]
    parser = ArgumentParser()
    parser.add_class_arguments(TrainConfig)
    read = parser.instantiate(parser.parse_args(words))
    assert read.stream == StreamConfig(threads=8, past_cache=True, window=Window())


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({"h5py": 3.0, "memmap": 9.0}, ["3.0 times as fast as the next, h5py", "slowest, memmap"]),
        ({"h5py": 0.5, "memmap": 9.0}, ["h5py is 2.0 times as fast as EventStream", "slowest, m"]),
        ({"h5py": 0.5}, ["h5py is 2.0 times as fast as EventStream"]),
    ],
)
def test_a_comparison_that_we_lose_is_said_as_one(times, words):
    said = list(compare._verdict(times))
    assert len(said) == len(words)
    assert all(word in sentence for word, sentence in zip(words, said, strict=True))


def test_a_picture_shows_each_group_of_rates_that_has_some(tmp_path):
    pytest.importorskip("matplotlib")
    rates = [rate_of("plain", [1, 2, 3], limit=True), rate_of("EventStream", [2, 2, 2])]
    path = draw_rates({"warm": rates, "cold": []}, "Reading", tmp_path / "a" / "read.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_an_encoding_that_is_not_known_is_refused():
    with pytest.raises(InputError, match="int7"):
        write.WriteBenchConfig(encodings=("int7",))
