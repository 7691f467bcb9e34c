"""The step that is measured is fed as in training."""

import json
import time
from dataclasses import replace

import numpy as np
import torch
from late_copies import LateCopy, OneAhead, TooLateCopy
from streams import open_stream

from model.feed import COPIES, PlainCopy, step_of_run, to_device_rates
from model.train import train
from model.transfer import DeviceBatches
from storage.bench.feed import FeedBenchConfig, bench_feed
from storage.bench.feed_step import FedStep
from storage.encodings import ENCODINGS
from storage.stream import Batch
from storage.stream_config import StreamConfig
from strainflow import main

CONFIG = FeedBenchConfig(batch_size=6, batches=20, rounds=1, threads=2, prefetch=1)


class SlowCopy(LateCopy):
    """Takes 5 ms more when it is waited for."""

    def wait(self):
        time.sleep(0.005)
        super().wait()


def fed(data, copy):
    """What a step is given when it is fed through copies, and what was measured."""
    given = []

    def step(batch):
        given.append((batch.event.tolist(), batch.strain.numpy().tobytes()))
        time.sleep(0.001)

    real = FedStep(step=step, deliver=lambda stream: OneAhead(stream, copy))
    return given, bench_feed(CONFIG, data, real)


def delivered(data):
    """Whole batches, from epoch to epoch, as the round with seed 0 gets them."""
    found = []
    for batch in open_stream(data, batch_size=6, threads=2, prefetch=1).epochs(5):
        if len(batch.event) == 6:
            found.append((batch.event.tolist(), batch.strain.tobytes()))
    return found


def test_a_step_is_fed_the_batches_of_the_stream_one_copied_ahead(toy_data):
    data = toy_data(events=47, events_per_shard=10, encoding=ENCODINGS["int16"])
    given, result = fed(data, LateCopy)
    assert given == delivered(data)[:21]
    assert (result.to_device, result.of_link) == ((), None)
    assert result.shortest_step is None


def test_a_buffer_that_is_used_again_too_early_is_noticed(toy_data):
    data = toy_data(events=47, events_per_shard=10, encoding=ENCODINGS["int16"])
    given, _ = fed(data, TooLateCopy)
    assert given != delivered(data)[:21]


def test_waiting_for_a_copy_is_not_the_accelerators_work(toy_data):
    data = toy_data(events=47, events_per_shard=10, encoding=ENCODINGS["int16"])
    _, result = fed(data, SlowCopy)
    assert result.wait_p50 > 0.005
    assert result.utilisation < 0.95


def test_a_run_is_fed_with_its_own_stream_section_unless_told_otherwise(
    config, toy_data, tmp_path, capsys
):
    data, run = toy_data(noisy=False), tmp_path / "run"
    train(replace(config, epochs=1, stream=StreamConfig(threads=3, prefetch=1)), data, run)
    capsys.readouterr()
    words = ["bench", "feed", str(data), f"--run={run}", f"--out={tmp_path}", "--json"]
    words += ["--batches=20", "--rounds=1"]
    for flags, threads in ((), 3), (("--threads=2",), 2):
        assert main([*words, *flags]) in (0, 1)
        report = json.loads(capsys.readouterr().out)
        assert report["threads"] == threads
        assert report["batch_size"] == config.batch_size
        assert report["utilisation"] > 0
        assert report["to_device"] == []


def test_on_the_cpu_nothing_is_copied_and_no_link_is_measured(trained, toy_data):
    data = toy_data(noisy=False)
    with step_of_run(trained[0], data) as (batch_size, real):
        assert real.to_device is None
        batches = real.deliver(open_stream(data, batch_size=batch_size, threads=1, prefetch=1))
        assert isinstance(batches, DeviceBatches)
        assert np.isfinite(real.step(next(batches.epochs())))


def test_copies_to_a_device_are_counted_beside_those_of_one_large_buffer():
    """With copies of this memory, as there may be no GPU here."""
    started = []

    def start(batch):
        started.append(batch)
        return LateCopy(batch)

    batch = Batch(np.zeros((4, 2, 1000), np.int8), np.zeros((4, 3)), np.arange(4))
    source = torch.arange(100_000)
    plain = PlainCopy(source, torch.zeros_like(source), lambda: None)
    ours, link = to_device_rates(start, batch, plain)
    assert torch.equal(plain.target, source)
    assert len(started) == COPIES * (1 + len(ours.rates))
    assert link.limit
    assert not ours.limit
    assert min(*ours.rates, *link.rates) > 0
