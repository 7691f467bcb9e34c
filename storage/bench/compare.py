"""Other loaders beside ours: the same events, each at its best number of workers, in alternation.

Each has a process of its own, so that the memory and threads of one burden no other. The first
pass of each, which fills its buffers, is not counted.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.bench.limits import least_resident, read_plainly, strain_files
from storage.bench.measure import (
    Contestant,
    Rate,
    alternate,
    cpu_seconds,
    machine,
    peak_memory,
    ratio,
)
from storage.bench.peers import Peer, contestants, whole_pass
from storage.bench.verdict import doubt_of_warmth
from storage.dataset import read_schema
from storage.errors import InputError
from storage.manifest import require_complete
from storage.progress import progress_bar
from storage.schema import Schema
from storage.stream_config import StreamConfig
from storage.urls import local_folder

if TYPE_CHECKING:
    from storage.progress import Bar

OURS = "EventStream"
PLAIN = "plain 16 MB reads"


@dataclass(frozen=True, kw_only=True)
class CompareBenchConfig:
    """What to measure.

    Args:
        peers: Which other loaders; all that are installed by default.
        batch_size: Events a batch.
        threads: Reading threads of ours; by default a calibration decides.
        rounds: How often each reads all events.
        scratch: Folder for the events in the peers' own formats, as large as the data set for each;
            by default one that is removed at the end.
    """

    peers: tuple[str, ...] | None = None
    batch_size: int = 256
    threads: int | None = None
    rounds: int = 5
    scratch: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, at least 1 is needed")


@dataclass(frozen=True)
class CompareBench:
    """The result. Rates are of strain in its stored type, from the page cache.

    Attributes:
        data: The data set.
        encoding: Of its strain.
        gigabytes: Of its strain.
        batch_size: Events a batch.
        rates: Plain reads, ours, and each peer at its best number of workers.
        times: Our rate over that of each peer, the median of the rounds' ratios.
        of_plain_reads: Ours over plain reads with as many threads.
        resident: The share that was in the page cache of that file, of the data set or of a peer's
            copy, of which it was least; before the passes or after them.
        orders: How random the batches of each are.
        copies: Bytes of the events in each peer's own format; 0 where it reads the data set itself.
        tried: Rates by number of workers of each peer, from one pass [GB/s].
        memory: The most memory that the process of each has had [bytes].
        missing: What is not installed, or failed, and why.
        machine: What it ran on.
        verdict: Who is next to ours.
    """

    data: str
    encoding: str
    gigabytes: float
    batch_size: int
    rates: tuple[Rate, ...]
    times: dict[str, float]
    of_plain_reads: float
    resident: float
    orders: dict[str, str]
    copies: dict[str, int]
    tried: dict[str, dict[int, float]]
    memory: dict[str, int]
    missing: tuple[str, ...]
    machine: dict[str, Any]
    verdict: tuple[str, ...]


def bench_compare(config: CompareBenchConfig, url: str | Path) -> CompareBench:
    """Measure other loaders beside ours.

    Args:
        config: What to measure.
        url: The data set.

    Raises:
        InputError: There is no data set on a local disk, or a peer is not known.
        DamagedDataError: It is not complete.
    """
    folder = local_folder(url, "the comparison with other loaders")
    schema = read_schema(folder)
    require_complete(folder, schema)
    peers, missing = contestants(config.peers)
    size = schema.events * schema.event_bytes
    files = strain_files(folder, range(schema.shards))
    with ExitStack() as stack:
        scratch = Path(config.scratch or stack.enter_context(_scratch_beside(folder)))
        ours = stack.enter_context(_Reader(_Ours(config.threads), folder, schema, scratch))
        threads = ours.first_pass(config.batch_size, 0)
        tried = dict[str, _Tried]()
        with progress_bar(sum(1 + len(peer.workers) for peer in peers), "try") as bar:
            for peer in peers:
                bar.set_postfix_str(peer.name)
                reader = _Reader(peer, folder, schema, scratch)
                try:
                    tried[peer.name] = _try(stack.enter_context(reader), config.batch_size, bar)
                except PeerFailed as error:
                    missing.append(str(error))
        readers = {OURS: (ours, 0)} | {
            name: (item.reader, item.best) for name, item in tried.items()
        }
        share = sum(path.stat().st_size for path in files) / size
        share = share if schema.encoding.compressed else 1.0
        copies = [path for path in scratch.rglob("*") if path.is_file() and path.stat().st_size]
        resident = least_resident([*files, *copies])
        found = alternate(
            [
                Contestant(
                    PLAIN,
                    lambda: round(read_plainly(files, threads) / share),
                    {"threads": threads},
                    limit=True,
                ),
                *(
                    Contestant(
                        name if name == OURS else f"{name}, {workers} workers",
                        lambda r=reader, w=workers: r.read(config.batch_size, w),  # type: ignore[misc]
                        {"peer": name, "workers": threads if name == OURS else workers},
                    )
                    for name, (reader, workers) in readers.items()
                ),
            ],
            config.rounds,
            schema.event_bytes,
        )
        resident = min(
            resident, least_resident([path for path in (*files, *copies) if path.exists()])
        )
        memory = {name: reader.memory for name, (reader, _) in readers.items()}
    plain, mine, *others = found
    times = {rate.setting["peer"]: float(ratio(mine, rate)) for rate in others}
    return CompareBench(
        data=str(folder),
        encoding=schema.encoding.name,
        gigabytes=size / 1e9,
        batch_size=config.batch_size,
        rates=tuple(found),
        times=times,
        of_plain_reads=float(ratio(mine, plain)),
        resident=resident,
        orders={peer.name: peer.order for peer in peers if peer.name in tried},
        copies={name: item.reader.written for name, item in tried.items()},
        tried={name: item.rates for name, item in tried.items()},
        memory=memory,
        missing=tuple(missing),
        machine=machine(folder),
        verdict=(*doubt_of_warmth(resident), *_verdict(times)),
    )


def summary(bench: CompareBench) -> str:
    """Put it into words."""
    lines = [
        f"{bench.data}: {bench.gigabytes:.2f} GB of strain as {bench.encoding}, batches of "
        f"{bench.batch_size}, from the page cache",
        *(f"  {rate}" for rate in bench.rates),
        f"  EventStream reaches {bench.of_plain_reads:.2f} of plain reads with as many threads",
    ]
    for name, times in bench.times.items():
        copy = f", a copy of {bench.copies[name] / 1e9:.2f} GB" if bench.copies[name] else ""
        lines.append(f"  {times:6.2f} times {name} ({bench.orders[name]}{copy})")
    return "\n".join([*lines, *(f"  {sentence}" for sentence in bench.missing), *bench.verdict])


def _verdict(times: dict[str, float]) -> Iterator[str]:
    if not times:
        return
    nearest, slowest = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    if times[nearest] >= 1:
        yield f"{OURS} is {times[nearest]:.1f} times as fast as the next, {nearest}."
    else:
        yield f"{nearest} is {1 / times[nearest]:.1f} times as fast as {OURS}."
    if slowest != nearest and times[slowest] >= 1:
        yield f"{OURS} is {times[slowest]:.1f} times as fast as the slowest, {slowest}."


@dataclass(frozen=True)
class _Tried:
    """A peer that works, and its rates by number of workers from one pass [GB/s]."""

    reader: "_Reader"
    rates: dict[int, float]

    @property
    def best(self) -> int:
        """The number of workers with which it is fastest."""
        return max(self.rates, key=self.rates.__getitem__)


def _try(reader: "_Reader", batch_size: int, bar: "Bar") -> _Tried:
    """Try each number of workers of a peer.

    Raises:
        PeerFailed: It cannot be measured.
    """
    rates = dict[int, float]()
    bar.update()
    for workers in reader.peer.workers:
        reader.first_pass(batch_size, workers)
        size, seconds, _ = reader.read(batch_size, workers)
        rates[workers] = size / seconds / 1e9
        bar.update()
    return _Tried(reader, rates)


class PeerFailed(InputError):
    """A peer cannot be measured; the message says why."""


class _Ours:
    """The stream, as a peer."""

    name = OURS
    order = "global: any event next to any other"
    workers: tuple[int, ...] = (0,)

    def __init__(self, threads: int | None) -> None:
        self._threads = threads
        self._stream: Any = None

    def prepare(self, folder: Path, schema: Schema, scratch: Path) -> int:
        """Take the data set as it is."""
        self._folder = folder
        return 0

    def read(self, batch_size: int, workers: int, seed: int) -> Iterator[Any]:
        """Read all events once."""
        if self._stream is None:
            from storage.stream import EventStream

            self._stream = EventStream(
                self._folder,
                batch_size=batch_size,
                config=StreamConfig(threads=self._threads, past_cache=False),
            )
        self._stream.load_state_dict({"seed": seed, "epoch": 0, "position": 0})
        for batch in self._stream:
            yield batch.strain
        self.workers = (self._stream.threads,)


def _scratch_beside(folder: Path) -> "tempfile.TemporaryDirectory[str]":
    """A folder on the disk of the data set."""
    return tempfile.TemporaryDirectory(prefix="strainflow-bench-", dir=folder.absolute().parent)


class _Reader:
    """A peer in a process of its own; a context that ends it."""

    def __init__(self, peer: Peer, folder: Path, schema: Schema, scratch: Path) -> None:
        self.peer, self._events, self._size = peer, schema.events, schema.event_bytes
        context = multiprocessing.get_context("spawn")  # threads of some peers survive no fork
        self._ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, peer, folder, schema, scratch), daemon=False
        )
        self._seed, self.memory, self.written = 0, 0, 0

    def __enter__(self) -> "_Reader":
        self._process.start()
        self.written = self._ask("prepare")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self._ours.send(None)
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()

    def read(self, batch_size: int, workers: int) -> tuple[int, float, float]:
        """Read all events once; return bytes of strain, seconds and CPU time."""
        self._seed += 1
        answer = self._ask("read", batch_size, workers, self._seed)
        seconds, cpu, self.memory, _ = answer
        return self._events * self._size, seconds, cpu

    def first_pass(self, batch_size: int, workers: int) -> int:
        """The pass that does not count; returns the peer's number of threads or workers."""
        self._seed += 1
        threads: int = self._ask("read", batch_size, workers, self._seed)[3]
        return threads

    def _ask(self, *question: Any) -> Any:  # noqa: ANN401
        self._ours.send(question)
        while not self._ours.poll(1):
            if not self._process.is_alive():
                raise PeerFailed(
                    f"{self.peer.name}: its process ended with {self._process.exitcode}; leave it "
                    "out with --peers, or lower --batch_size"
                )
        answer = self._ours.recv()
        if isinstance(answer, Exception):
            raise PeerFailed(f"{self.peer.name}: {answer}; leave it out with --peers") from answer
        return answer


def _serve(questions: Connection, peer: Peer, folder: Path, schema: Schema, scratch: Path) -> None:
    """Answer what the measuring process asks, until it asks for nothing more."""
    # A process that was spawned spawns in turn: seconds for each worker of a DataLoader.
    multiprocessing.set_start_method("fork", force=True)
    while (question := questions.recv()) is not None:
        try:
            if question[0] == "prepare":
                questions.send(peer.prepare(folder, schema, scratch))
                continue
            _, batch_size, workers, seed = question
            began, used = time.perf_counter(), cpu_seconds()
            whole_pass(peer, schema.events, batch_size, workers, seed)
            seconds, used = time.perf_counter() - began, cpu_seconds() - used
            questions.send((seconds, used, peak_memory(), peer.workers[-1]))
        except Exception as error:
            questions.send(RuntimeError(" ".join(f"{type(error).__name__}: {error}".split())[:300]))
