"""What the services of the tests share: packages, free ports, daemons, and use by hand."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PATIENCE = 60.0  # seconds until a service is taken for hung
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


class ServiceMissingError(RuntimeError):
    """A service cannot be had on this machine; the text says why."""


def cache_folder() -> Path:
    """Where downloaded services stay: STRAINFLOW_SERVICES or ~/.cache/strainflow-services."""
    chosen = os.environ.get("STRAINFLOW_SERVICES")
    return Path(chosen).absolute() if chosen else Path.home() / ".cache" / "strainflow-services"


def find_program(name: str) -> str | None:
    """Path of a program, those of the administrator included."""
    return shutil.which(name, path=SYSTEM_PATH)


def install_packages(packages: Mapping[str, str]) -> None:
    """Install the Debian packages whose programs are missing.

    Args:
        packages: The package of each program that is needed.

    Raises:
        ServiceMissingError: They are missing, and this user or machine cannot install them.
    """
    missing = sorted({packages[name] for name in packages if find_program(name) is None})
    if not missing:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if find_program("apt-get") is None:
        raise ServiceMissingError(f"{', '.join(missing)}: not installed, and there is no apt-get")
    if os.geteuid() != 0:
        raise ServiceMissingError(
            f"{', '.join(missing)}: not installed; as root: {shlex.join(command)}"
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    answer = _run_quietly(command, environment)
    if answer.returncode != 0:  # the lists are missing or old
        _run_quietly(["apt-get", "update"], environment)
        answer = _run_quietly(command, environment)
    if answer.returncode != 0:
        raise ServiceMissingError(f"{shlex.join(command)}: {answer.stderr.strip()}")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on, all different."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


def wait_until(
    true: Callable[[], bool], what: str, patience: float = PATIENCE, pause: float = 0.05
) -> float:
    """Wait until something is true; return how long it took [s].

    Raises:
        TimeoutError: It did not come true.
    """
    start = time.monotonic()
    while not true():
        if time.monotonic() - start > patience:
            raise TimeoutError(f"no {what} after {patience:g} s")
        time.sleep(pause)
    return time.monotonic() - start


class Daemons:
    """Processes that run until they are stopped, or until the process that started them ends."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str | Path) -> None:
        """Start a daemon that stays in the foreground; what it says goes to output.log."""
        with (self.folder / "output.log").open("ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is not for them
            )
        self.processes.append(process)

    def check(self) -> None:
        """Raise ServiceMissingError if one of them has ended."""
        for process in self.processes:
            if process.poll() is not None:
                raise ServiceMissingError(
                    f"{shlex.join(map(str, process.args[3:]))} ended with exit code "
                    f"{process.returncode}: {self.last_words()}"
                )

    def last_words(self) -> str:
        """The end of each log, for a message."""
        logs = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return "\n".join(
            f"{path.name}: {path.read_text(errors='replace')[-1500:]}"
            for path in logs
            if path.name.endswith(("log", "Log")) and path.stat().st_size
        )

    def stop(self) -> None:
        """End them, the last first."""
        for process in reversed(self.processes):
            process.kill()
            process.wait()
        self.processes.clear()


def try_by_hand(
    name: str,
    environment: Mapping[str, str],
    exported: Sequence[str],
    flags: Sequence[str],
    out: str = "events.zarr",
) -> int:
    """Run the command on the command line beside a service, or wait for Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if sys.argv[1:]:
            return subprocess.run(sys.argv[1:], env=environment, check=False).returncode
        return _wait_for_interrupt(name, environment, exported, [f"--out {out}", *flags])
    except KeyboardInterrupt:
        return 130


def _wait_for_interrupt(
    name: str, environment: Mapping[str, str], exported: Sequence[str], flags: Sequence[str]
) -> int:
    print(f"{name} is up until Ctrl-C. In another terminal:\n")
    for variable in exported:
        print(f"  export {variable}={shlex.quote(environment[variable])}")
    words = ["strainflow simulate --config pipeline/recipes/et-demo.yaml", *flags]
    print(" ".join(["", "", *words, "--cluster.workers=2"]), flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        print()
    return 0


def _run_quietly(
    command: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
