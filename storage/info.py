"""What a data set is, from its metadata and the lengths of its files alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import MEND, DamagedDataError
from storage.inventory import take_inventory
from storage.manifest import first_problem, manifest_path, manifests_or_damage
from storage.schema import Source, shard_files
from storage.urls import store_of

RESTORED = "; `strainflow repair {}` restores it"
MOST_NAMES = 10  # of damaged manifests in words


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
        finished_shards: Shards that have a manifest that can be read.
        accepted_shards: Those of them that `strainflow repair --accept` wrote with other bytes than
            had been recorded.
        damaged_manifests: Paths of the others; nothing is known of what those shards hold.
        events_per_shard: Events in a shard.
        encoding: How strain is stored.
        scale_factor: Sigma per integer step; None for floating-point encodings.
        max_snr_loss: The largest loss that was promised; None where nothing was.
        noisy: Whether the strain holds noise.
        detectors: Their names.
        polarisations: Those that are stored in place of the detectors' strain.
        samples: Time samples of an event in each detector, or polarisation.
        sample_rate: [Hz].
        bytes: Of all finished shards.
        bytes_per_event: Of an event's strain, the mean where they are compressed.
        largest_snr_loss: The largest share of the SNR that the encoding took from one event; where
            `recoded_from` names data sets, against the first of them.
        recoded_from: The data sets that lost something and from which this one was recoded, the one
            that was read for it first: their encodings, and the largest loss that each certifies
            against the one before it.
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
    accepted_shards: list[int]
    damaged_manifests: list[str]
    events_per_shard: int
    encoding: str
    scale_factor: float | None
    max_snr_loss: float | None
    noisy: bool
    detectors: tuple[str, ...]
    polarisations: tuple[str, ...]
    samples: int
    sample_rate: float
    bytes: int
    bytes_per_event: int
    largest_snr_loss: float
    recoded_from: list[Source]
    rejected: Mapping[str, int]
    checks: Mapping[str, Mapping[str, int]]
    parameters: list[dict[str, str]]
    provenance: Mapping[str, Any]


def describe(url: str | Path) -> DatasetInfo:
    """Gather what is known of a data set.

    Raises:
        InputError: There is no data set of ours.
        DamagedDataError: Its metadata are lost.
    """
    store = store_of(url)
    inventory = take_inventory(store, listed=False)
    schema, failed = inventory.schema, list[str]()
    problems = [
        f"{store.where(item.file)}: {item.what}"
        + (RESTORED.format(store.url) if item.mendable else "")
        for item in inventory.findings
        if item.shard is None
    ]
    rejected, passed, done = Counter[str](), Counter[str](), Counter[str]()
    shards = events = total = payloads = 0
    largest = 0.0
    length_of = None
    damaged, first_damage, accepted = list[str](), "", list[int]()
    for shard, item in manifests_or_damage(store, schema):  # one at a time: there may be 200,000
        if isinstance(item, DamagedDataError):
            damaged.append(path := manifest_path(shard))
            first_damage = first_damage or str(item).removeprefix(f"{store.where(path)}: ")
            continue
        length_of = length_of or store.lengths()
        if problem := first_problem(store, item, length_of):
            problems.append(problem)
        shards, events, total = shards + 1, events + item.events, total + item.bytes
        payloads += item.files[shard_files(item.shard)["strain"]]["bytes"]
        accepted += [item.shard] if item.replaced else []
        largest = max(largest, item.largest_snr_loss)
        rejected.update(item.rejected)
        done.update(item.checks.keys())
        passed.update(name for name, found in item.checks.items() if found["passed"])
        failed += [
            f"shard {item.shard} does not pass its check {name}: {found}"
            for name, found in item.checks.items()
            if not found["passed"]
        ]
    if damaged:
        problems.append(_words_on_damage(damaged, first_damage, shards + len(damaged)))
    if missing := schema.shards - shards - len(damaged):
        problems.append(
            f"{missing} of {schema.shards} shards are missing; run the same "
            f"`strainflow {schema.verb}` again to complete it"
        )
    return DatasetInfo(
        data=store.url,
        complete=not problems,
        problems=problems + failed,
        events=schema.events,
        finished_events=events,
        shards=schema.shards,
        finished_shards=shards,
        accepted_shards=accepted,
        damaged_manifests=damaged,
        events_per_shard=schema.events_per_shard,
        encoding=schema.encoding.name,
        scale_factor=schema.encoding.scale_factor,
        max_snr_loss=schema.encoding.max_snr_loss,
        noisy=schema.noisy,
        detectors=schema.detectors,
        polarisations=schema.polarisations,
        samples=schema.samples,
        sample_rate=schema.sample_rate,
        bytes=total,
        bytes_per_event=round(payloads / events)
        if schema.encoding.compressed and events
        else schema.event_bytes,
        largest_snr_loss=largest,
        recoded_from=schema.sources,
        rejected=dict(rejected),
        checks={name: {"shards": done[name], "passed": passed[name]} for name in sorted(done)},
        parameters=[
            {"name": item.name, "unit": item.unit, "prior": item.prior}
            for item in schema.parameters
        ],
        provenance=schema.provenance,
    )


def _words_on_damage(paths: list[str], first: str, manifests: int) -> str:
    """Count and name damaged manifests, and say what is wrong with the first.

    Args:
        paths: Theirs, within the data set.
        first: What is wrong with the first.
        manifests: How many there are, the sound ones included.
    """
    names = ", ".join(paths[:MOST_NAMES]) + (", ..." if len(paths) > MOST_NAMES else "")
    return (
        f"{len(paths)} of {manifests} manifests are damaged, so nothing is known of their shards: "
        f"{names} (the first: {first.partition(';')[0]}); {MEND}"
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
        f"  strain      {', '.join(facts.polarisations or facts.detectors)} x {facts.samples:,} "
        f"samples at {facts.sample_rate:g} Hz ({facts.samples / facts.sample_rate:g} s), "
        f"{_content(facts)}",
        f"  encoding    {facts.encoding}{_step(facts)}, {facts.bytes_per_event:,} bytes an event, "
        f"largest SNR loss {facts.largest_snr_loss:.2g}"
        + (f" of {facts.max_snr_loss:g} promised" if facts.max_snr_loss is not None else "")
        + (", against its source" if facts.recoded_from else ""),
        *([f"  source      {words_on_sources(facts.recoded_from)}"] if facts.recoded_from else []),
        *_words_on_frames(facts.provenance.get("frames")),
        f"  waveform    {', '.join(_settings(waveform))}",
        f"  seed        {facts.provenance.get('seed')}; draws thrown away: {rejected or 'none'}",
        *(
            f"  check       {name}: passed in {found['passed']} of {found['shards']} shards"
            for name, found in facts.checks.items()
        ),
        *_words_on_accepted(facts.accepted_shards),
        f"  versions    {', '.join(f'{name} {number}' for name, number in versions.items())}",
        "  prior",
        *(
            f"    {item['name']:<{width}}  {item['prior']}"
            + (f"  [{item['unit']}]" if item["unit"] else "")
            for item in facts.parameters
        ),
    ]
    return "\n".join(lines)


def _words_on_accepted(shards: list[int]) -> list[str]:
    """Say which shards are not as they were first written."""
    if not shards:
        return []
    names = ", ".join(map(str, shards[:MOST_NAMES])) + (", ..." if len(shards) > MOST_NAMES else "")
    return [
        f"  accepted    {len(shards)} shards have other bytes than were first written (`strainflow "
        f"repair --accept`): {names}"
    ]


def words_on_sources(sources: list[Source]) -> str:
    """Say from what a data set was recoded, as `recoded from int8 (loss at most 0.0013)`."""
    return ", itself ".join(
        f"recoded from {source.encoding} (loss "
        + (
            "not recorded)"
            if source.largest_snr_loss is None
            else f"at most {source.largest_snr_loss:.2g})"
        )
        for source in sources
    ).replace(", itself recoded from", ", itself from")


def _words_on_frames(frames: Mapping[str, Any] | None) -> list[str]:
    """Where data that were cut out of frames come from."""
    if frames is None:
        return []
    times = [float(moment["gps"]) for moment in frames["events"]]
    when = ", ".join(f"{time:.13g}" for time in times[:MOST_NAMES])
    more = f" and {len(times) - MOST_NAMES} more" if len(times) > MOST_NAMES else ""
    return [
        f"  frames      {', '.join(map(str, frames['channels']))} of {len(frames['files'])} files, "
        f"{', '.join(list(frames['files'])[:MOST_NAMES])}",
        f"  events at   GPS {when}{more}; counted as in the segment of the simulation",
        f"  PSD         {frames['psd']}",
    ]


def _content(facts: DatasetInfo) -> str:
    """What the series hold."""
    if facts.polarisations:
        return (
            "polarisations, of which training makes events of "
            f"{', '.join(facts.detectors)}, each step with what the prior leaves free of distance, "
            "direction and time"
        )
    return "signal and noise" if facts.noisy else "signals without noise"


def _step(facts: DatasetInfo) -> str:
    return f" in steps of {facts.scale_factor:g} sigma" if facts.scale_factor is not None else ""


def _settings(section: Mapping[str, Any]) -> list[str]:
    """Name and value of each setting, those of a section within it by its name and a dot."""
    words = []
    for name, value in section.items():
        if isinstance(value, Mapping):
            words += [f"{name}.{word}" for word in _settings(value)]
        else:
            words.append(f"{name} {value}")
    return words
