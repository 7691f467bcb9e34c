"""Stages of webdataset that keep batches need copies of them, as docs/loader.md says."""

import copy

import pytest
import webdataset as wds

from storage.stream import EventStream
from storage.stream_config import StreamConfig

EVENTS = 96


@pytest.fixture
def stream(build):
    """Batches of 8 events, in two buffers or three."""
    data = build(events=EVENTS, events_per_shard=16)
    return EventStream(data.folder, batch_size=8, config=StreamConfig(threads=2, prefetch=1))


def kept(pipeline):
    return [number for batch in pipeline for number in batch.event.tolist()]


def test_a_stage_that_keeps_copies_has_every_event_once(stream):
    shuffled = wds.DataPipeline(stream, wds.map(copy.deepcopy), wds.shuffle(8))
    assert sorted(kept(shuffled)) == list(range(EVENTS))


def test_without_a_stage_every_event_comes_once(stream):
    assert sorted(kept(wds.DataPipeline(stream))) == list(range(EVENTS))


def test_a_stage_that_keeps_batches_loses_events(stream):
    found = kept(wds.DataPipeline(stream, wds.shuffle(8)))
    assert len(found) == EVENTS
    assert len(set(found)) < EVENTS


def test_the_loader_and_a_stage_that_keeps_nothing_need_no_copy(stream):
    for source in (
        wds.WebLoader(stream, batch_size=None),
        wds.DataPipeline(stream, wds.map(lambda batch: batch)),
    ):
        seen = [number for batch in source for number in batch.event.tolist()]
        assert sorted(seen) == list(range(EVENTS))
