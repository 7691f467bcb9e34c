"""What a data set is, from its metadata and the lengths of its files alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.dataset import read_schema
from storage.manifest import first_problem, read_manifests
from storage.urls import local_folder


@dataclass(frozen=True)
class DatasetInfo:
    """The answer of `strainflow info`.

    Attributes:
        data: The folder.
        complete: Whether every shard is there with all its bytes.
        problems: Why not, a sentence each.
        events: Number of events.
        finished_events: Events in finished shards.
        shards: Number of shards.
        finished_shards: Shards that have a manifest.
        events_per_shard: Events in a shard.
        encoding: How strain is stored.
        noisy: Whether the strain holds noise.
        detectors: Their names.
        samples: Time samples of an event in each detector.
        sample_rate: [Hz].
        bytes: Of all finished shards.
        bytes_per_event: Of an event's strain.
        largest_snr_loss: The largest share of the SNR that the encoding took from one event.
        rejected: Draws thrown away, by reason.
        parameters: Name, unit and prior of each parameter.
        provenance: Configuration, seed, detectors, PSD digest and versions.
    """

    data: str
    complete: bool
    problems: list[str]
    events: int
    finished_events: int
    shards: int
    finished_shards: int
    events_per_shard: int
    encoding: str
    noisy: bool
    detectors: tuple[str, ...]
    samples: int
    sample_rate: float
    bytes: int
    bytes_per_event: int
    largest_snr_loss: float
    rejected: Mapping[str, int]
    checks: Mapping[str, Mapping[str, int]]
    parameters: list[dict[str, str]]
    provenance: Mapping[str, Any]


def describe(url: str | Path) -> DatasetInfo:
    """Gather what is known of a data set.

    Raises:
        InputError: There is no data set of ours.
    """
    folder = local_folder(url)
    schema = read_schema(folder)
    manifests = read_manifests(folder, schema).values()
    problems = [problem for item in manifests if (problem := first_problem(folder, item))]
    if len(manifests) < schema.shards:
        problems.append(
            f"{schema.shards - len(manifests)} of {schema.shards} shards are missing; run the same "
            "`strainflow simulate` again to complete it"
        )
    complete = not problems
    rejected, passed, done = Counter[str](), Counter[str](), Counter[str]()
    for item in manifests:
        rejected.update(item.rejected)
        done.update(item.checks.keys())
        passed.update(name for name, found in item.checks.items() if found["passed"])
        problems += [
            f"shard {item.shard} does not pass its check {name}: {found}"
            for name, found in item.checks.items()
            if not found["passed"]
        ]
    return DatasetInfo(
        data=str(folder),
        complete=complete,
        problems=problems,
        events=schema.events,
        finished_events=sum(item.events for item in manifests),
        shards=schema.shards,
        finished_shards=len(manifests),
        events_per_shard=schema.events_per_shard,
        encoding=schema.encoding.name,
        noisy=schema.noisy,
        detectors=schema.detectors,
        samples=schema.samples,
        sample_rate=schema.sample_rate,
        bytes=sum(facts["bytes"] for item in manifests for facts in item.files.values()),
        bytes_per_event=schema.event_bytes,
        largest_snr_loss=max((item.largest_snr_loss for item in manifests), default=0.0),
        rejected=dict(rejected),
        checks={name: {"shards": done[name], "passed": passed[name]} for name in sorted(done)},
        parameters=[
            {"name": item.name, "unit": item.unit, "prior": item.prior}
            for item in schema.parameters
        ],
        provenance=schema.provenance,
    )


def summary(facts: DatasetInfo) -> str:
    """Put it into words."""
    waveform = facts.provenance.get("configuration", {}).get("waveform", {})
    versions = facts.provenance.get("versions", {})
    state = "complete" if facts.complete else "NOT COMPLETE"
    rejected = ", ".join(f"{count} {reason}" for reason, count in facts.rejected.items())
    width = max(len(item["name"]) for item in facts.parameters)
    lines = [
        f"{facts.data}: {state}",
        *(f"  problem: {problem}" for problem in facts.problems),
        f"  events      {facts.finished_events:,} of {facts.events:,} in "
        f"{facts.finished_shards} of {facts.shards} shards of {facts.events_per_shard}, "
        f"{facts.bytes / 1e9:.3f} GB",
        f"  strain      {', '.join(facts.detectors)} x {facts.samples:,} samples at "
        f"{facts.sample_rate:g} Hz ({facts.samples / facts.sample_rate:g} s), "
        f"{'signal and noise' if facts.noisy else 'signals without noise'}",
        f"  encoding    {facts.encoding}, {facts.bytes_per_event:,} bytes an event, "
        f"largest SNR loss {facts.largest_snr_loss:.2g}",
        f"  waveform    {', '.join(_settings(waveform))}",
        f"  seed        {facts.provenance.get('seed')}; draws thrown away: {rejected or 'none'}",
        *(
            f"  check       {name}: passed in {found['passed']} of {found['shards']} shards"
            for name, found in facts.checks.items()
        ),
        f"  versions    {', '.join(f'{name} {number}' for name, number in versions.items())}",
        "  prior",
        *(
            f"    {item['name']:<{width}}  {item['prior']}"
            + (f"  [{item['unit']}]" if item["unit"] else "")
            for item in facts.parameters
        ),
    ]
    return "\n".join(lines)


def _settings(section: Mapping[str, Any]) -> list[str]:
    """Name and value of each setting, those of a section within it by its name and a dot."""
    words = []
    for name, value in section.items():
        if isinstance(value, Mapping):
            words += [f"{name}.{word}" for word in _settings(value)]
        else:
            words.append(f"{name} {value}")
    return words
