"""The main job end to end, with the commands that a user would type: `make demo`.

Simulates full-size events of a reduced problem (signals to train on, noisy events to be tested on),
measures reading, trains on the CPU, draws posteriors for events that the network has never seen,
checks them, and prints what it took. What is there already is used again.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path("demo")
STRAINFLOW = str(Path(sys.executable).with_name("strainflow"))

STAGES = {
    "simulate": "simulate --config pipeline/recipes/et-demo.yaml --out demo/train.zarr",
    "held out": "simulate --config pipeline/recipes/et-demo.yaml --out demo/test.zarr "
    "--events 128 --seed 2 --noise gaussian",
    "read": "bench read demo/train.zarr --rounds 3 --sweep false --cold false --out demo/bench",
    "train": "train --config model/recipes/demo.yaml --data demo/train.zarr --out demo/run",
    "sample": "sample --run demo/run --data demo/test.zarr --samples 1000 --out demo/results",
    "diagnose": "diagnose demo/results --level 0.01 --out demo/pictures",
}


def main() -> int:
    """Run every stage; return the exit code of the first that fails."""
    start = time.perf_counter()
    reports: dict[str, dict[str, Any]] = {}
    for stage, command in STAGES.items():
        print(f"\n$ strainflow {command}", flush=True)
        words = [STRAINFLOW, *shlex.split(command), "--json"]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode not in (0, 1) or not done.stdout:
            return done.returncode or 1
        reports[stage] = _first_report(stage, json.loads(done.stdout))
    print(_table(reports, time.perf_counter() - start))
    return 0 if reports["diagnose"]["calibrated"] else 1


def _first_report(stage: str, report: dict[str, Any]) -> dict[str, Any]:
    """The report of the call that did the work: a later one finds it done and has no rate."""
    path = FOLDER / "reports" / f"{stage.replace(' ', '-')}.json"
    worked = report.get("simulated", 1) and report.get("sampled", 1) and report.get("events", 1)
    if not worked and path.is_file():
        earlier: dict[str, Any] = json.loads(path.read_text())
        return earlier
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1))
    return report


def _table(reports: dict[str, dict[str, Any]], seconds: float) -> str:
    simulate, read, train = reports["simulate"], reports["read"], reports["train"]
    sample, diagnosis = reports["sample"], reports["diagnose"]
    stream = next(rate for rate in read["warm"] if rate["name"].startswith("EventStream"))
    chirp_mass = next(check for check in diagnosis["checks"] if check["name"] == "chirp_mass")
    per_sample = _ratio(1e6 * sample["seconds"], sample["sampled"] * sample["samples"])
    rows = [
        ("stage", "here", "the reference (ET-0273A-24)"),
        (
            "simulation",
            f"{_ratio(simulate['core_seconds'], simulate['simulated'], 3)} core-s an event",
            "0.46 core-s an event",
        ),
        (
            "data set",
            f"{_ratio(simulate['bytes'], 1e3 * simulate['simulated'])} kB an event",
            "786 kB",
        ),
        (
            "training input",
            f"{stream['gigabytes_per_second']:.1f} GB/s, "
            f"{stream['events_per_second']:.0f} events/s",
            "0.2 GB/s, 256 events/s",
        ),
        (
            f"training ({train['device']})",
            f"{_ratio(train['events'], train['seconds'])} events/s",
            "256 events/s on an L40",
        ),
        ("waiting for data", f"{100 * train['data_wait']:.1f} % of the training", "not published"),
        (
            "inference",
            f"{per_sample} us a sample an event, of {len(diagnosis['checks'])} parameters",
            "57 us on an L40, of 14",
        ),
        (
            "chirp mass",
            f"{chirp_mass['narrowing']:.1f} times narrower than the prior",
            "not published",
        ),
        (
            f"P-P of {diagnosis['events']} events",
            f"combined p = {diagnosis['combined_p_value']:.2f}, "
            + ("passed" if diagnosis["calibrated"] else "NOT PASSED"),
            "not published",
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in rows]  # fmt: skip
    lines.insert(1, "  ".join("-" * width for width in widths))
    pictures = [train["picture"], *diagnosis["pictures"]]
    return "\n".join(
        ["", *lines, "", f"{seconds:.0f} s in all. Pictures:", *(f"  {path}" for path in pictures)]
    )


def _ratio(value: float, unit: float, digits: int = 0) -> str:
    """A rate; a dash where an interrupted demo left the work but not its report."""
    return f"{value / unit:.{digits}f}" if unit else "-"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; what is finished stays, run `make demo` again to go on")
