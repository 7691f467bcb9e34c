"""A real HTCondor pool of one machine on its loopback, for tests and to try things.

By hand: `python tests/services/htcondor.py` keeps it up until Ctrl-C and says how to reach it;
`python tests/services/htcondor.py COMMAND ...` runs one command beside it.

Debian 13 has HTCondor, Debian 12 has not. Its packages are unpacked once into a folder and made
to use their own loader and libraries, so that they run on any Linux with apt and user namespaces.
"""

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from daemons import (
    SYSTEM_PATH,
    Daemons,
    ServiceMissingError,
    cache_folder,
    find_program,
    free_ports,
    install_packages,
    try_by_hand,
    wait_until,
)

PACKAGES = {"mmdebstrap": "mmdebstrap", "patchelf": "patchelf", "unshare": "util-linux"}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
LOADER = "usr/lib64/ld-linux-x86-64.so.2"
LIBRARIES = ("usr/lib", "usr/lib/x86_64-linux-gnu")
CONFIGURATION = """\
RELEASE_DIR = {prefix}/usr
BIN = $(RELEASE_DIR)/bin
SBIN = $(RELEASE_DIR)/sbin
LIB = $(RELEASE_DIR)/lib/condor
LIBEXEC = $(RELEASE_DIR)/libexec/condor
SHARE = $(RELEASE_DIR)/share/condor
LOCAL_DIR = {folder}
RUN = $(LOCAL_DIR)/run
LOG = $(LOCAL_DIR)/log
LOCK = $(LOCAL_DIR)/lock
SPOOL = $(LOCAL_DIR)/spool
EXECUTE = $(LOCAL_DIR)/execute
REQUIRE_LOCAL_CONFIG_FILE = False
CONDOR_HOST = 127.0.0.1
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
NETWORK_HOSTNAME = localhost
COLLECTOR_HOST = 127.0.0.1:{port}
SHARED_PORT_PORT = {port}
DAEMON_LIST = MASTER COLLECTOR NEGOTIATOR SCHEDD STARTD
UID_DOMAIN = localhost
FILESYSTEM_DOMAIN = localhost
TRUST_UID_DOMAIN = True
SEC_DEFAULT_AUTHENTICATION_METHODS = FS
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
ALLOW_ADMINISTRATOR = *
NUM_CPUS = 4
MEMORY = 8192
START = True
SUSPEND = False
PREEMPT = False
KILL = False
WANT_SUSPEND = False
RUNBENCHMARKS = False
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 2
UPDATE_INTERVAL = 5
POLLING_INTERVAL = 2
"""


class HTCondor:
    """HTCondor in a scratch folder, while the context lasts.

    Attributes:
        flags: With which the command line uses it.
        folder: Where its files are.
        environment: Variables with which its commands and Dask find it.
    """

    flags = ("--cluster.kind=htcondor", "--cluster.interface=lo")

    def __init__(self) -> None:
        self.prefix = install()
        self._scratch = tempfile.TemporaryDirectory(prefix="htcondor-", ignore_cleanup_errors=True)
        self.folder = Path(self._scratch.name)
        self.environment = {
            **os.environ,
            "PATH": f"{self.folder}/commands:{SYSTEM_PATH}",
            "CONDOR_CONFIG": str(self.folder / "condor_config"),
        }
        self._daemons = Daemons(self.folder, self.environment)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def command(self, *words: str) -> str:
        """Run one of HTCondor's commands and return what it says."""
        answer = subprocess.run(
            words, env=self.environment, check=True, capture_output=True, text=True, timeout=60
        )
        return answer.stdout

    def jobs(self) -> list[str]:
        """Its jobs: the number and state of each (1 idle, 2 running, 5 held)."""
        return self.command("condor_q", "-allusers", "-af:j", "JobStatus").splitlines()

    def vacate(self, job: str) -> None:
        """Take a job's machine away at once; it waits for another one."""
        self.command("condor_vacate_job", "-fast", job)

    def restore(self) -> None:
        """Cancel every job and wait until they are gone."""
        if self.jobs():
            self.command("condor_rm", "-all")
        wait_until(lambda: not self.jobs(), "empty queue")

    def _start(self) -> None:
        for name in ("log", "spool", "execute", "lock", "run", "commands"):
            (self.folder / name).mkdir()
        (self.folder / "condor_config").write_text(
            CONFIGURATION.format(prefix=self.prefix, folder=self.folder, port=free_ports(1)[0])
        )
        for program in (self.prefix / "usr/bin").glob("condor_*"):
            wrapper = self.folder / "commands" / program.name
            wrapper.write_text(f'#!/bin/sh\nexec {" ".join(_as_a_user())} {program} "$@"\n')
            wrapper.chmod(0o755)
        self._daemons.start(
            *_as_a_user(),
            *("--pid", "--fork", "--kill-child", "--mount-proc"),  # its end ends the jobs too
            self.prefix / "usr/sbin/condor_master",
            "-f",
        )
        wait_until(self._is_ready, "idle machine")

    def _is_ready(self) -> bool:
        self._daemons.check()
        answer = subprocess.run(
            ["condor_status", "-af", "State"],
            env=self.environment,
            check=False,
            capture_output=True,
            text=True,
        )
        return "Unclaimed" in answer.stdout

    def _stop(self) -> None:
        self._daemons.stop()
        self._scratch.cleanup()


def install() -> Path:
    """Unpack HTCondor into the cache folder, unless it is there.

    Returns:
        The folder that holds its usr/.

    Raises:
        ServiceMissingError: This user or machine cannot have it.
    """
    prefix = cache_folder() / "htcondor"
    if prefix.is_dir():
        return prefix
    install_packages(PACKAGES)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), ignore_cleanup_errors=True) as scratch:
        unpacked = Path(scratch) / "htcondor"
        source = f"deb [signed-by={KEYRING}] {_mirror()} trixie main"
        mode = "--mode=root" if os.geteuid() == 0 else "--mode=chrootless"
        what = ("--variant=extract", "--include=minicondor", "trixie")
        _run("mmdebstrap", mode, *what, unpacked, source)
        _use_own_libraries(unpacked, prefix)
        unpacked.rename(prefix)
    return prefix


def _mirror() -> str:
    """The archive that apt uses on this machine."""
    answer = _run("apt-get", "indextargets", "--format", "$(REPO_URI)")
    addresses = [line for line in answer.splitlines() if "security" not in line]
    if not addresses:
        raise ServiceMissingError("apt: knows no archive; run apt-get update")
    return addresses[0]


def _use_own_libraries(unpacked: Path, prefix: Path) -> None:
    """Point HTCondor's programs to the loader and libraries they will have below the prefix."""
    path = ":".join(str(prefix / folder) for folder in LIBRARIES)
    rpath = ["--force-rpath", "--set-rpath", path]
    for folder in ("bin", "sbin", "libexec/condor"):
        programs = [item for item in (unpacked / "usr" / folder).glob("condor_*") if _is_elf(item)]
        _run("patchelf", "--set-interpreter", prefix / LOADER, *rpath, *programs)
    for name in ("libcondor_utils*.so", "libclassad*.so"):
        libraries = [item for item in unpacked.rglob(name) if _is_elf(item)]
        _run("patchelf", *rpath, *libraries)


def _is_elf(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _as_a_user() -> list[str]:
    """The start of a command that runs it in a namespace of its own, not as root.

    HTCondor runs no jobs as root, and needs a user with a name.
    """
    user = os.getuid()
    if user == 0:
        user = max(item.pw_uid for item in pwd.getpwall() if item.pw_uid < 60000)
    return ["unshare", "--user", f"--map-user={user}", f"--map-group={user}"]


def _run(*command: str | Path) -> str:
    program = find_program(str(command[0]))
    if program is None:
        raise ServiceMissingError(f"{command[0]}: not installed")
    answer = subprocess.run([program, *command[1:]], check=False, capture_output=True, text=True)
    if answer.returncode != 0:
        raise ServiceMissingError(f"{command[0]}: {answer.stderr.strip()[-1500:]}")
    return answer.stdout


def main() -> int:
    """Keep HTCondor up until Ctrl-C, or while the command on the command line runs."""
    with HTCondor() as htcondor:
        exported = ["CONDOR_CONFIG", "PATH"]
        return try_by_hand("HTCondor", htcondor.environment, exported, htcondor.flags)


if __name__ == "__main__":
    sys.exit(main())
