"""A real Slurm of two nodes on the loopback of this machine, for tests and to try things.

By hand: `python tests/services/slurm.py` keeps it up until Ctrl-C and says how to reach it;
`python tests/services/slurm.py COMMAND ...` runs one command beside it.
"""

import getpass
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from daemons import (
    SYSTEM_PATH,
    Daemons,
    find_program,
    free_ports,
    install_packages,
    try_by_hand,
    wait_until,
)

PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
}
NODES = ("n1", "n2")
CONFIGURATION = """\
ClusterName=strainflow
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
# Without these it listens on every interface.
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
AccountingStorageType=accounting_storage/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4096
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4096
PartitionName=debug Nodes=n1,n2 Default=YES LLN=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """Slurm in a scratch folder, while the context lasts.

    Attributes:
        flags: With which the command line uses it.
        folder: Where its files are.
        environment: Variables with which its commands and Dask find it.
    """

    flags = ("--cluster.kind=slurm", "--cluster.queue=debug", "--cluster.interface=lo")

    def __init__(self) -> None:
        install_packages(PACKAGES)
        self._scratch = tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)
        self.folder = Path(self._scratch.name)
        self.environment = {
            **os.environ,
            "PATH": SYSTEM_PATH,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
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
        """Run one of Slurm's commands and return what it says."""
        answer = subprocess.run(
            words, env=self.environment, check=True, capture_output=True, text=True, timeout=60
        )
        return answer.stdout

    def jobs(self) -> list[str]:
        """Its jobs: the number, state and node of each."""
        return self.command("squeue", "-h", "-o", "%i %T %N").splitlines()

    def lose_node(self, node: str) -> None:
        """Set a node down: its jobs are killed and queued again."""
        self.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def cancel_jobs(self) -> None:
        """Cancel every job and wait until they are gone."""
        for line in self.jobs():
            self.command("scancel", line.split()[0])
        wait_until(lambda: not self.jobs(), "empty queue")

    def restore(self) -> None:
        """Cancel every job and bring every node back."""
        self.cancel_jobs()
        for node in NODES:
            if "down" in self.command("sinfo", "-h", "-n", node, "-o", "%T"):
                self.command("scontrol", "update", f"nodename={node}", "state=resume")
        wait_until(self._is_ready, "idle nodes")

    def _start(self) -> None:
        munge = self.folder / "munge"
        for folder in (munge, self.folder / "state"):
            folder.mkdir(mode=0o700)
        (self.folder / "plugstack.conf").touch()
        key = munge / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname().split(".")[0],
                user=getpass.getuser(),
                ports=free_ports(3),
                folder=self.folder,
            )
        )
        self._daemons.start(
            _path("munged"),
            "--foreground",
            "--force",  # the scratch folder lies in /tmp, which others may write to
            f"--socket={munge}/munge.sock",
            *(f"--{kind}-file={munge}/munge.{kind}" for kind in ("key", "pid", "log", "seed")),
        )
        wait_until((munge / "munge.sock").exists, "socket of munged")
        self._daemons.start(_path("slurmctld"), "-D")
        for node in NODES:
            self._daemons.start(_path("slurmd"), "-D", "-N", node)
        wait_until(self._is_ready, "idle nodes")

    def _is_ready(self) -> bool:
        self._daemons.check()
        answer = subprocess.run(
            ["sinfo", "-h", "-t", "idle", "-o", "%D"],
            env=self.environment,
            check=False,
            capture_output=True,
            text=True,
        )
        return answer.stdout.strip() == str(len(NODES))

    def _stop(self) -> None:
        """Cancel every job, whose processes would outlive the daemons, and end the daemons."""
        try:
            if len(self._daemons.processes) == 2 + len(NODES):
                self.cancel_jobs()
        except (subprocess.SubprocessError, TimeoutError) as error:
            print(f"slurm: jobs may be left: {error}", file=sys.stderr)
        finally:
            self._daemons.stop()
            self._scratch.cleanup()


def _path(name: str) -> str:
    return find_program(name) or name


def main() -> int:
    """Keep Slurm up until Ctrl-C, or while the command on the command line runs."""
    with Slurm() as slurm:
        return try_by_hand("Slurm", slurm.environment, ["SLURM_CONF"], slurm.flags)


if __name__ == "__main__":
    sys.exit(main())
