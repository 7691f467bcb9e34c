"""What a folder of result files holds, from their names and the first of them alone."""

from dataclasses import dataclass
from pathlib import Path

from storage.results import REWEIGHTED, SUFFIX, read_posterior, result_files
from storage.schema import GROUP_METADATA


@dataclass(frozen=True)
class ResultsInfo:
    """The answer of `strainflow info RESULTS`; all but the events is of the first file.

    Attributes:
        results: The folder.
        events: How many have a file.
        first_event: The lowest number.
        last_event: The highest.
        samples: Posterior samples of an event.
        parameters: That were inferred.
        data: The data set, as it was called; empty where it is not recorded.
        data_sha256: Of its metadata.
        checkpoint_sha256: Of the checkpoint that drew the samples.
        seed: Of the samples; None where it is not recorded.
        reweighted: Whether the samples have exact likelihoods and weights.
        reweighted_events: Files in the folder of the reweighted results below this one.
    """

    results: str
    events: int
    first_event: int
    last_event: int
    samples: int
    parameters: tuple[str, ...]
    data: str
    data_sha256: str
    checkpoint_sha256: str
    seed: int | None
    reweighted: bool
    reweighted_events: int


def holds_results(folder: str) -> bool:
    """Whether a folder holds result files, and is no data set."""
    here = Path(folder)
    return any(here.glob(f"event_*{SUFFIX}")) and not (here / GROUP_METADATA).exists()


def describe_results(folder: str) -> ResultsInfo:
    """Gather what is known of a folder of result files.

    Raises:
        InputError: There are none.
        DamagedDataError: The first is damaged.
    """
    files = result_files(folder)
    first = read_posterior(files[0])
    numbers = [path.name.removeprefix("event_").removesuffix(SUFFIX) for path in files]
    known = [int(number) for number in numbers if number.isdecimal()] or [first.event]
    made = first.provenance
    seed = made.get("seed")
    return ResultsInfo(
        results=folder,
        events=len(files),
        first_event=min(known),
        last_event=max(known),
        samples=len(first.samples),
        parameters=first.names,
        data=first.data,
        data_sha256=str(made.get("data_sha256", "")),
        checkpoint_sha256=str(made.get("checkpoint_sha256", "")),
        seed=seed if isinstance(seed, int) else None,
        reweighted=first.exact is not None,
        reweighted_events=sum(1 for _ in (Path(folder) / REWEIGHTED).glob(f"event_*{SUFFIX}")),
    )


def summary_of_results(facts: ResultsInfo) -> str:
    """Put it into words."""
    state = "reweighted to the exact likelihood" if facts.reweighted else "as they were sampled"
    if facts.reweighted_events:
        state += f"; {facts.reweighted_events:,} reweighted ones in {REWEIGHTED}/"
    following = "" if facts.reweighted else " (`strainflow reweight`: exact likelihoods)"
    return "\n".join(
        [
            f"{facts.results}: result files, {state}",
            f"  events      {facts.events:,}, from {facts.first_event} to {facts.last_event}",
            f"  samples     {facts.samples:,} an event of {', '.join(facts.parameters)}",
            f"  data        {facts.data or 'not recorded'} (SHA-256 {facts.data_sha256[:12]}...)",
            f"  run         checkpoint SHA-256 {facts.checkpoint_sha256[:12]}..., "
            f"seed {facts.seed}",
            f"  next        `strainflow diagnose {facts.results} --out pictures`{following}",
        ]
    )
