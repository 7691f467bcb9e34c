"""Workers as jobs of a batch system, through dask-jobqueue, and what that system says of them.

A job is one worker on one core. It ends a little before its walltime, and is replaced for as long
as there is work. What jobs print lands in the run's log folder. That folder and the data set have
to be on a file system that the nodes share.
"""

import getpass
import json
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.cluster import DASK_SETTINGS, Cluster, ClusterConfig
from storage.errors import InputError

LEAVE_EARLY = 60  # seconds before its walltime at which a worker hands its work over
ANSWER_SECONDS = 60.0  # a batch system that takes longer is taken to be silent
PROGRAM = "strainflow"  # the jobs' name


@dataclass(frozen=True)
class JobState:
    """What the batch system says of one job.

    Attributes:
        alive: Whether it runs, or may still run without anyone's help.
        words: State and reason, as the batch system puts them.
    """

    alive: bool
    words: str


@dataclass(frozen=True)
class BatchSystem:
    """What differs between batch systems.

    Attributes:
        name: For messages.
        submit: The command that submits a job.
        make: Makes dask-jobqueue's cluster of a configuration and its common options.
        states: Looks the user's jobs up; one that has ended may be missing.
        analyse: Says why a job that waits does not run, or nothing.
    """

    name: str
    submit: str
    make: Callable[[ClusterConfig, dict[str, Any]], Any]
    states: Callable[[], Mapping[str, JobState]]
    analyse: Callable[[str], str]


@contextmanager
def slurm(config: ClusterConfig, logs: Path) -> Iterator[Cluster]:
    """Run workers as Slurm jobs."""
    system = BatchSystem("Slurm", "sbatch", _slurm_cluster, _slurm_states, lambda job: "")
    with _jobs(system, config, logs) as cluster:
        yield cluster


@contextmanager
def htcondor(config: ClusterConfig, logs: Path) -> Iterator[Cluster]:
    """Run workers as HTCondor jobs."""
    system = BatchSystem(
        "HTCondor", "condor_submit", _htcondor_cluster, _htcondor_states, _htcondor_analysis
    )
    with _jobs(system, config, logs) as cluster:
        yield cluster


@contextmanager
def _jobs(system: BatchSystem, config: ClusterConfig, logs: Path) -> Iterator[Cluster]:
    """Submit the jobs, and cancel those that are left at the end."""
    import dask
    from distributed import Client

    if shutil.which(system.submit) is None:
        raise InputError(
            f"cluster.kind: {system.name} was asked for, but there is no command {system.submit} "
            "here; run this where jobs are submitted"
        )
    logs.mkdir(parents=True, exist_ok=True)
    with (
        dask.config.set(DASK_SETTINGS),
        _make(system, config, logs) as jobs,
        Client(jobs) as client,
    ):
        try:
            _submit(jobs, config.workers, system)
            yield Cluster(
                client,
                config.workers,
                refill=lambda: _refill(jobs, config.workers, system),
                explain=lambda: _explain(jobs, system, logs),
            )
        finally:
            # Dask asserts that each of these is closed; dask-jobqueue never says so of a job.
            jobs._created.clear()


def _make(system: BatchSystem, config: ClusterConfig, logs: Path) -> Any:  # noqa: ANN401
    """Make dask-jobqueue's cluster; its scheduler starts.

    Raises:
        InputError: A setting means nothing to it.
    """
    try:
        return system.make(config, _common_options(config, logs))
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(f"cluster: {error}; change the settings of cluster") from None


def _common_options(config: ClusterConfig, logs: Path) -> dict[str, Any]:
    """What dask-jobqueue is told whatever the batch system."""
    lifetime = max(config.walltime_seconds - LEAVE_EARLY, config.walltime_seconds // 2)
    stagger = min(lifetime, LEAVE_EARLY) // 4
    return {
        "job_name": PROGRAM,
        "cores": 1,
        "processes": 1,
        "memory": config.memory,
        "interface": config.interface,
        "python": config.python,
        "local_directory": config.scratch,
        "log_directory": str(logs.absolute()),
        # A folder `model` in the job's working directory would stand in for ours.
        "job_script_prologue": [*config.setup, "export PYTHONSAFEPATH=1"],
        "worker_extra_args": [
            *("--preload", "pipeline.cluster"),
            *("--lifetime", f"{lifetime}s", "--lifetime-stagger", f"{stagger}s"),
        ],
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
    }


def _submit(jobs: Any, wanted: int, system: BatchSystem) -> None:  # noqa: ANN401  # no types
    """Submit jobs until there are as many as wanted.

    Raises:
        InputError: The batch system refuses one.
    """
    while len(jobs.worker_spec) < wanted:
        jobs.worker_spec.update(jobs.new_worker_spec())
    try:
        # `scale` does the same in the background, where a refusal would only be logged.
        jobs.sync(jobs._correct_state)
    except (RuntimeError, ValueError) as error:
        answer = str(error).partition("stderr:\n")[2].strip() or str(error)
        raise InputError(
            f"cluster: {system.name} refuses the job: {answer}; change the settings of cluster"
        ) from None


def _refill(jobs: Any, wanted: int, system: BatchSystem) -> int:  # noqa: ANN401
    """Submit jobs in place of those that will not come back; return how many."""
    connected = {worker["name"] for worker in list(jobs.scheduler_info["workers"].values())}
    if len(connected) >= wanted:  # nothing to ask the batch system for
        return 0
    try:
        states = system.states()
    except (OSError, ValueError, subprocess.SubprocessError):  # it is busy: ask again next time
        return 0
    submitted = {name: job.job_id for name, job in list(jobs.workers.items())}
    lost = [
        name
        for name, job in submitted.items()
        if name not in connected and not (job in states and states[job].alive)
    ]
    for name in lost:
        jobs.worker_spec.pop(name, None)
    # Dask itself gives a worker up that was lost and not back in 15 s, and cancels its job.
    replaced = len(lost) + len(set(jobs.worker_spec) - set(submitted))
    if replaced:
        _submit(jobs, wanted, system)
    return replaced


def _explain(jobs: Any, system: BatchSystem, logs: Path) -> str:  # noqa: ANN401
    """Say what the batch system and the jobs themselves say."""
    ours = [job.job_id for job in list(jobs.workers.values())]
    try:
        states = system.states()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"{system.name} does not answer ({error})"
    waiting = [job for job in ours if job in states]
    count = Counter(states[job].words for job in waiting)
    says = [f"{number} job{'s' * (number > 1)} {words}" for words, number in count.items()]
    if ended := len(ours) - len(waiting):
        says.append(f"{ended} job{'s' * (ended > 1)} ended")
    sentence = f"{system.name} says: {', '.join(says)}"
    may_run = [job for job in waiting if states[job].alive]
    if may_run and (analysis := system.analyse(may_run[0])):
        sentence += f"; {analysis}"
    if ended and (output := _last_output(logs)):
        sentence += f"; a job's last output: {output}"
    return sentence


def _last_output(logs: Path) -> str:
    """The last line that one of the jobs has printed to its standard error."""
    files = sorted(logs.glob("*.err"), key=lambda path: path.stat().st_mtime)
    for path in reversed(files):
        lines = path.read_text(errors="replace").strip().splitlines()
        if lines:
            return f"{lines[-1].strip()} ({path})"
    return ""


def _import_jobqueue() -> ModuleType:
    """Import dask-jobqueue, and undo that its import makes Ctrl-C an exit with code 0."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        return import_module("dask_jobqueue")
    finally:
        signal.signal(signal.SIGINT, handler)


def _slurm_cluster(config: ClusterConfig, common: dict[str, Any]) -> Any:  # noqa: ANN401
    minutes, seconds = divmod(config.walltime_seconds, 60)
    return _import_jobqueue().SLURMCluster(
        queue=config.queue,
        account=config.account,
        walltime=f"{minutes}:{seconds:02}",  # Slurm takes 4:30 for minutes and seconds
        job_extra_directives=list(config.directives),
        **common,
    )


def _slurm_states() -> Mapping[str, JobState]:
    lines = _ask("squeue", "--noheader", "--format=%i|%T|%r", f"--user={getpass.getuser()}")
    states = {}
    for line in lines.splitlines():
        job, state, reason = line.strip().split("|", 2)
        # Everything else ends by itself, or has ended.
        alive = state in ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUED", "RESIZING")
        states[job] = JobState(alive, f"{state} ({reason})")
    return states


def _htcondor_cluster(config: ClusterConfig, common: dict[str, Any]) -> Any:  # noqa: ANN401
    if config.queue is not None:
        raise InputError("cluster.queue: HTCondor has no queues; use cluster.directives")
    directives = {
        # A job that outlives its walltime is taken away; another one is submitted then.
        "periodic_remove": "JobStatus == 2 && "
        f"(time() - EnteredCurrentStatus) > {config.walltime_seconds}",
    }
    if config.account is not None:
        directives["accounting_group"] = config.account
    for line in config.directives:
        key, equals, value = line.partition("=")
        if not equals:
            raise InputError(f"cluster.directives: got {line!r}, write lines such as `key = value`")
        directives[key.strip()] = value.strip()
    return _import_jobqueue().HTCondorCluster(
        disk=config.disk, job_extra_directives=directives, **common
    )


# JobStatus of a job's ClassAd, by number: HTCondor's manual, "Job ClassAd Attributes".
_HTCONDOR_STATES = (
    *("unexpanded", "idle", "running", "removed"),
    *("completed", "held", "transferring output", "suspended"),
)
_HTCONDOR_ALIVE = ("idle", "running", "transferring output", "suspended")


def _htcondor_states() -> Mapping[str, JobState]:
    attributes = "ClusterId,ProcId,JobStatus,HoldReason"
    answer = _ask("condor_q", "-json", "-attributes", attributes)
    states = {}
    for job in json.loads(answer or "[]"):
        state = _HTCONDOR_STATES[job["JobStatus"]]
        reason = f" ({job['HoldReason']})" if "HoldReason" in job else ""
        states[f"{job['ClusterId']}.{job['ProcId']}"] = JobState(
            state in _HTCONDOR_ALIVE, state + reason
        )
    return states


def _htcondor_analysis(job: str) -> str:
    try:
        answer = _ask("condor_q", "-better-analyze", job)
    except (OSError, subprocess.SubprocessError):
        return ""
    summary = answer.partition("Run analysis summary")[2].partition(".")[2]
    lines = [" ".join(line.split()) for line in summary.splitlines() if line.strip()]
    return ", ".join(lines).replace(",,", ",").replace(":,", ":")


def _ask(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True
    ).stdout
