"""Ranks of a group meet at every step and are killed at random: each event once an epoch, still.

What counts as delivered is what the checkpoints say: a group goes on from the last one, so what it
was given after it comes again.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.audit import Audit
from storage.encodings import ENCODINGS
from storage.manifest import finished_shards

ranks = pytest.importorskip("ranks", reason="needs torch", exc_type=ImportError)

EVENTS = 997
PATIENCE = 120.0  # seconds until a group is taken for hung


@pytest.fixture(scope="module", params=["int16", "int16+blosc"])
def data(build, request):
    """997 events in 44 shards, the last one partial."""
    return build(events=EVENTS, events_per_shard=23, encoding=ENCODINGS[request.param])


@pytest.fixture(scope="module")
def uncompressed(build):
    """The same events for tests that need no other encoding."""
    return build(events=EVENTS, events_per_shard=23, encoding=ENCODINGS["int16"])


@contextmanager
def running(task):
    """Start a group; whatever happens, nothing of it is left at the end."""
    process = subprocess.Popen(
        [sys.executable, ranks.__file__, task.text],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_group(process)


def kill_group(process):
    """End all ranks at once, and wait until they are gone: what they say then comes to its end."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)


def kill_at_random(task, process, chance):
    """Kill a group or one of its ranks, which the others notice, after a random number of steps."""
    in_epoch = -(-EVENTS // (task.batch_size * task.world_size))
    steps = chance.randint(1, max(1, int(0.7 * in_epoch)))
    deadline = time.monotonic() + PATIENCE
    while steps_of(task, 0) < steps and process.poll() is None:
        assert time.monotonic() < deadline, f"no step {steps} after {PATIENCE} s: {task}"
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.02))
    if chance.random() < 0.5 and process.poll() is None:
        pids = json.loads((Path(task.folder) / f"{task.group}.pids").read_text())
        os.kill(chance.choice(pids), signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
    kill_group(process)
    assert process.returncode, f"ended before it could be killed: {task}"


def steps_of(task, rank):
    log = task.log(rank)
    return log.read_bytes().count(b"\n") if log.exists() else 0


def committed(task):
    """What the ranks of a group were given before its last checkpoint, and the audits of it."""
    events, audits = dict[int, Counter](), dict[int, Audit]()
    until = json.loads(task.checkpoint.read_text())["step"] if task.checkpoint.exists() else 0
    for rank in range(task.world_size):
        said = dict[int, Audit]()  # each is of everything since the group went on, in an epoch
        lines = task.log(rank).read_bytes().splitlines() if until else []
        assert len(lines) >= until
        for step, line in enumerate(map(json.loads, lines[:until]), start=1):
            assert line["step"] == step
            epoch = line["epoch"]
            events.setdefault(epoch, Counter()).update(line["of_step"])
            said[epoch] = Audit(epoch, line["events"], tuple(line["sums"]))
        for epoch, audit in said.items():
            audits[epoch] = audits.get(epoch, Audit(epoch)) + audit
    return events, audits


def delivered(tasks):
    """The same for several groups that went on after each other."""
    events, audits = dict[int, Counter](), dict[int, Audit]()
    for task in tasks:
        for epoch, (numbers, audit) in zipped(*committed(task)):
            events[epoch] = events.get(epoch, Counter()) + numbers
            audits[epoch] = audits.get(epoch, Audit(epoch)) + audit
    return events, audits


def zipped(events, audits):
    assert events.keys() == audits.keys()
    return [(epoch, (events[epoch], audits[epoch])) for epoch in events]


def wrong(tasks, expected):
    """What was delivered too often, too rarely or unlike the audits, given what each epoch has."""
    events, audits = delivered(tasks)
    found = [] if events.keys() == expected.keys() else [f"epochs {sorted(events)}"]
    for epoch in events.keys() & expected.keys():
        once = Counter(list(expected[epoch]))
        if lacking := once - events[epoch]:
            found.append(f"epoch {epoch}: {len(lacking)} are missing")
        if extra := events[epoch] - once:
            found.append(f"epoch {epoch}: {len(extra)} came too often")
        if audits[epoch] != Audit.of(np.array(expected[epoch]), epoch):
            found.append(f"epoch {epoch}: the audit differs")
    return found


def run_groups(data, folder, groups, chance, **options):
    """Let groups of (ranks, batch size) go on after each other; all but the last are killed."""
    tasks, resume = [], None
    for number, (world_size, batch_size) in enumerate(groups):
        task = ranks.Task(
            str(data.folder), str(folder), number, world_size, batch_size, resume=resume, **options
        )
        tasks.append(task)
        with running(task) as process:
            if number < len(groups) - 1:
                kill_at_random(task, process, chance)
            else:
                _, complaints = process.communicate(timeout=PATIENCE)
                assert process.returncode == 0, complaints
        resume = str(task.checkpoint) if task.checkpoint.exists() else resume
    return tasks


@pytest.mark.parametrize("window", [None, pytest.param((3, 4), marks=pytest.mark.slow)])
def test_each_event_comes_once_an_epoch_over_ranks_that_are_killed(uncompressed, tmp_path, window):
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    tasks = run_groups(uncompressed, tmp_path, [(3, 11), (2, 7)], chance, epochs=2, window=window)
    assert wrong(tasks, dict.fromkeys(range(2), range(EVENTS))) == [], f"seed {seed}"


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, (3, 4)])
@pytest.mark.parametrize("seed", [1, None])
def test_8_ranks_killed_at_random_then_3_then_5_deliver_each_event_once_an_epoch(
    data, tmp_path, window, seed
):
    seed = random.randrange(10**6) if seed is None else seed
    groups = [(8, 4), (8, 4), (3, 7), (3, 7), (5, 3), (5, 3)]
    tasks = run_groups(data, tmp_path, groups, random.Random(seed), epochs=4, window=window)
    assert wrong(tasks, dict.fromkeys(range(4), range(EVENTS))) == [], f"seed {seed}"


def test_the_comparison_notices_a_state_of_what_was_read_ahead(uncompressed, tmp_path):
    options = {"epochs": 1, "stream": "ahead", "save_every": 1}
    tasks = run_groups(uncompressed, tmp_path, [(2, 11), (3, 5)], random.Random(1), **options)
    found = wrong(tasks, {0: range(EVENTS)})
    assert found == ["epoch 0: 22 are missing", "epoch 0: the audit differs"]


def test_the_comparison_notices_events_that_come_twice_and_audits_of_others(uncompressed, tmp_path):
    tasks = run_groups(uncompressed, tmp_path, [(2, 40)], random.Random(1), epochs=1)
    assert wrong(tasks, {0: range(EVENTS)}) == []
    assert wrong(tasks, {0: range(EVENTS - 1)}) == [
        "epoch 0: 1 came too often",
        "epoch 0: the audit differs",
    ]
    lines = tasks[0].log(1).read_text().splitlines()
    first = json.loads(lines[0])
    first["of_step"][:2] = [first["of_step"][0]] * 2
    tasks[0].log(1).write_text("\n".join([json.dumps(first), *lines[1:]]))
    assert wrong(tasks, {0: range(EVENTS)}) == [
        "epoch 0: 1 are missing",
        "epoch 0: 1 came too often",
    ]


@pytest.mark.parametrize(
    ("epochs", "says"),
    [pytest.param(1, "imed out", marks=pytest.mark.slow), (2, "different places")],
)
def test_a_rank_that_has_one_batch_more_than_the_others_is_noticed(
    uncompressed, tmp_path, epochs, says
):
    """At the end the others would never come; before, it would meet them in the next epoch."""
    task = ranks.Task(
        str(uncompressed.folder), str(tmp_path), 0, 2, 100, epochs, stream="more", patience=3.0
    )
    with running(task) as process:
        _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert says in complaints


# Growing sets


def whole_shards(data, numbers):
    """The shards that some events are exactly all of."""
    found = {number // data.schema.events_per_shard for number in numbers}
    assert sorted(numbers) == [n for shard in sorted(found) for n in data.schema.events_of(shard)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, (3, 4)])
def test_ranks_that_are_killed_while_the_set_grows_get_each_event_of_an_epoch_once(
    small, start, finish, tmp_path, window
):
    schema = replace(small, events=EVENTS, events_per_shard=23, encoding=ENCODINGS["int16"])
    data = finish(start(tmp_path / "events.zarr", schema), [3, 40])
    chance = random.Random()
    rest = [shard for shard in range(schema.shards) if shard not in (3, 40)]
    with finishing(data, chance.sample(rest, len(rest)), finish, pause=0.4):
        groups = [(8, 4), (3, 7), (5, 3), (5, 3)]
        tasks = run_groups(data, tmp_path, groups, chance, epochs=2, window=window, growing=True)
    events, audits = delivered(tasks)
    assert sorted(events) == list(range(len(events)))
    seen = set[int]()
    sizes = []
    for epoch in sorted(events):
        assert set(events[epoch].values()) == {1}
        assert audits[epoch] == Audit.of(np.array(list(events[epoch])), epoch)
        shards = whole_shards(data, events[epoch])
        assert seen <= shards
        seen = shards
        sizes.append(len(shards))
    assert sizes[-1] == schema.shards == len(finished_shards(data.folder, schema))
    assert len(set(sizes)) > 2, f"the set did not grow: {sizes}"


@contextmanager
def finishing(data, shards, finish, pause):
    """Write shards, in another process, with a pause after each."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            for shard in shards:
                finish(data, [shard])
                time.sleep(pause)
            code = 0
        finally:
            os._exit(code)
    try:
        yield
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
