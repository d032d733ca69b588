"""The run scripts as jobs of a real SLURM: two nodes on this machine, started here and stopped at the end.

Most tests put a small program in the place of the trainer, with its files: checkpoint mark, stop file, summary. One
test runs the real thing on two Ray nodes, interrupted and undisturbed.
"""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "scancel")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
# A requeued job waits until its old credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=5
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# In the place of `python`: the real one but for the training command. A step takes a second; files are the trainer's.
TRAINER = """#!{python}
import json, os, pathlib, sys, time
if sys.argv[1:3] != ["-m", "recipe.trd.main"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
said = dict(item.split("=", 1) for item in sys.argv[3:])
folder = pathlib.Path(said["trainer.default_local_dir"])
total, save_freq = int(said["trainer.total_training_steps"]), int(said["trainer.save_freq"])
folder.mkdir(parents=True, exist_ok=True)
mark, stop = folder / "latest_checkpointed_iteration.txt", pathlib.Path(os.environ["TRD_STOP_FILE"])
step = int(mark.read_text()) if mark.exists() else 0
with (folder / "starts.jsonl").open("a") as out:
    version = pathlib.Path("recipe/trd/__init__.py").read_text()
    start = {{"step": step, "ray": os.environ["RAY_ADDRESS"], "version": version, "arguments": sys.argv[3:]}}
    out.write(json.dumps(start) + "\\n")
while step < total:
    time.sleep(float(os.environ.get("STEP_S", 1)))
    step += 1
    if stop.exists() or (save_freq > 0 and step % save_freq == 0):
        mark.write_text(str(step))
    if stop.exists() and step < total:
        stop.with_name("stopped").write_text(str(step))
        sys.exit(0)
config = {{"trd": {{"method": said["method"]}}, "data": {{"seed": int(said["data.seed"])}}}}
(folder / "config.yaml").write_text(json.dumps(config))
(folder / "summary.json").write_text(json.dumps({{"last_step": step, "held_out": {{"last": {{"mean": 0.5}}}}}}))
sys.exit(int(os.environ.get("TRAINER_EXIT_CODE", 0)))
"""


class Cluster:
    """A SLURM with the nodes n1 and n2, on ports and in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        sockets = [socket.socket() for _ in range(3)]
        for each in sockets:
            each.bind(("", 0))
        ports = [each.getsockname()[1] for each in sockets]
        for each in sockets:
            each.close()
        text = CONFIGURATION.format(host=socket.gethostname(), ports=ports, user=getpass.getuser(), folder=self.folder)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        munge = [f"--{name}={self.folder}/munge.{name.split('-')[0]}" for name in ("socket", "key-file", "pid-file")]
        munge += [f"--log-file={self.folder}/munge.log", f"--seed-file={self.folder}/munge.seed", "--num-threads=2"]
        self.run("munged", "--force", *munge)
        self.run("slurmctld")
        for node in ("n1", "n2"):
            (self.folder / f"spool.{node}").mkdir()
            self.run("slurmd", "-N", node)
        self.wait_until(lambda: self.run("sinfo", "--noheader", "--format=%T").stdout.split() == ["idle"], "idle nodes")

    def stop(self) -> None:
        subprocess.run(["scancel", "--user", getpass.getuser()], env=self.environment, check=False)
        for pid_file in ("slurmd.n1.pid", "slurmd.n2.pid", "slurmctld.pid", "munge.pid"):
            path = self.folder / pid_file
            if path.exists():
                process = psutil.Process(int(path.read_text()))
                process.terminate()
                psutil.wait_procs([process], timeout=20)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command, env={**self.environment, **environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def submit(self, folder: Path, *arguments: str, **environment: str) -> str:
        """Submit from the folder, in which everything that the job prints will lie as well; returns its id."""
        options = ["--parsable", f"--chdir={folder}", f"--output={folder}/%A-%a.out"]
        # A job that is killed leaves its folder of temporary files; ours goes with the cluster's.
        environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "RAY_TMP_ROOT": str(self.folder), **environment}
        done = subprocess.run(
            ["sbatch", *options, *arguments],
            cwd=folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        text = self.run("scontrol", "show", "job", "--oneliner", job).stdout
        return dict(item.split("=", 1) for item in text.split() if "=" in item)

    def wait(self, job: str, timeout_s: float = 90) -> dict[str, str]:
        """Wait for the end of a job, requeues and all; returns what SLURM knows of it."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_until(lambda: self.job(job)["JobState"] in over, f"the end of job {job}", timeout_s)
        return self.job(job)

    @staticmethod
    def wait_until(condition, what: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def slurm():
    """A running SLURM; its folder lies in /tmp, because the path of a socket is short."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"SLURM is not installed: no {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)")
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="s-", dir="/tmp")))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(cluster.folder, ignore_errors=True)


@pytest.fixture
def repository(tmp_path):
    """A copy of the code that a test may change, with the data and a stand-in for the trainer, `python`."""
    folder = tmp_path / "repository"
    for name in ("recipe", "verl_ext", "configs", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data").symlink_to(ROOT / "data")
    python = folder / "python"
    python.write_text(TRAINER.format(python=sys.executable))
    python.chmod(0o755)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results(repository):
    return lines(repository / "outputs" / "slurm" / "results.jsonl")


def processes_of(repository):
    """Processes that work in the folder or were started from it; a job has to take them all along."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(repository) in " ".join([process.cwd(), *process.cmdline()]):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_time_limit_and_requeue_lose_nothing(slurm, repository):
    """SLURM's own signal before the limit, then an administrator's requeue, which warns nobody."""
    job = slurm.submit(
        repository,
        *("--nodes=2", "--time=1", "--signal=B:USR1@50", "scripts/run_trd_tiny_cpu.sh"),
        **{"PYTHON": "./python", "TOTAL_STEPS": "900", "SAVE_FREQ": "4", "RUN_DIR": "runs/a", "REQUEUE_MARGIN_S": "5"},
    )
    run = repository / "runs" / "a"
    slurm.wait_until(lambda: len(lines(run / "starts.jsonl")) == 2, "second start", 120)
    stopped = repository / "outputs" / "slurm" / f"{job}-a" / "0" / "stopped"
    assert lines(run / "starts.jsonl")[1]["step"] == int(stopped.read_text()) > 0

    # The job keeps to the code that it started with.
    (repository / "recipe" / "trd" / "__init__.py").write_text("changed")
    mark = run / "latest_checkpointed_iteration.txt"
    saved = int(stopped.read_text())
    slurm.wait_until(lambda: int(mark.read_text()) > saved, "another checkpoint")
    slurm.run("scontrol", "requeue", job)
    slurm.wait_until(lambda: len(lines(run / "starts.jsonl")) == 3, "third start", 90)
    starts = lines(run / "starts.jsonl")
    assert starts[2]["step"] >= saved + 1
    assert {start["version"] for start in starts} == {(ROOT / "recipe" / "trd" / "__init__.py").read_text()}
    assert len({json.dumps(start["arguments"]) for start in starts}) == 1
    slurm.run("scancel", job)
    slurm.wait(job)
    assert results(repository) == []
    slurm.wait_until(lambda: processes_of(repository) == [], "end of all processes", 20)


def test_array_in_a_container_and_a_job_beside_it(slurm, repository):
    """Every task is a run of its own, with one result line; the container is entered; a neighbour is left alone."""
    tools = repository / "tools"
    tools.mkdir()
    # Does what apptainer does as far as the command line goes, and keeps the command line.
    apptainer = tools / "apptainer"
    apptainer.write_text(
        '#!/bin/sh\necho "$@" >>"$0.log"\nwhile [ "$1" != image.sif ]; do shift; done\nshift\nexec "$@"\n'
    )
    apptainer.chmod(0o755)
    knobs = {"PYTHON": "./python", "TOTAL_STEPS": "3"}
    neighbour = slurm.submit(
        repository, "scripts/run_opd_tiny_cpu.sh", **{**knobs, "TOTAL_STEPS": "600", "RUN_DIR": "runs/neighbour"}
    )
    array = slurm.submit(
        repository,
        *("--array=1,2", "scripts/run_trd_tiny_cpu.sh", "data.train_batch_size=8"),
        **knobs,
        METHODS="trd_opd grpo",
        SEEDS="3 4",
        CONTAINER="image.sif",
        CONTAINER_MOUNTS="/data:/data",
        PATH=f"{tools}:{os.environ['PATH']}",
    )
    for task in (1, 2):
        assert slurm.wait(f"{array}_{task}")["ExitCode"] == "0:0", (repository / f"{array}-{task}.out").read_text()
    found = {(line["method"], line["seed"], line["last_step"], line["state"]) for line in results(repository)}
    assert found == {("trd_opd", 4, 3, "finished"), ("grpo", 3, 3, "finished")}
    entered = (tools / "apptainer.log").read_text().splitlines()
    # Each run trains in it, and writes its result line.
    assert len(entered) == 4
    assert all(f"--bind {repository}:{repository},/data:/data --pwd {repository}" in line for line in entered)
    start = lines(repository / "outputs" / "trd_opd-tiny-seed4" / "starts.jsonl")[0]
    assert "data.train_batch_size=8" in start["arguments"]

    assert slurm.job(neighbour)["JobState"] == "RUNNING"
    taken = slurm.submit(repository, "scripts/run_trd_tiny_cpu.sh", **knobs, RUN_DIR="runs/neighbour")
    assert slurm.wait(taken)["ExitCode"] == "2:0"
    assert f"in use by job {neighbour}" in (repository / f"{taken}-4294967294.out").read_text()
    assert len(lines(repository / "runs" / "neighbour" / "starts.jsonl")) == 1
    slurm.run("scancel", neighbour)
    slurm.wait(neighbour)


def test_a_run_that_fails_ends_its_job_with_its_exit_code(slurm, repository):
    job = slurm.submit(
        repository,
        *("--nodes=2", "scripts/run_trd_tiny_cpu.sh"),
        **{"PYTHON": "./python", "TOTAL_STEPS": "1", "TRAINER_EXIT_CODE": "3"},
    )
    assert slurm.wait(job)["ExitCode"] == "3:0"
    (line,) = results(repository)
    assert (line["state"], line["last_step"], line["attempts"]) == ("failed (3)", None, 1)
    slurm.wait_until(lambda: processes_of(repository) == [], "end of all processes", 20)


def test_a_job_whose_steps_outlast_it_says_so_and_is_not_requeued_for_ever(slurm, repository):
    # So large a margin makes every step too slow for the signal; and no step was saved before.
    knobs = {"PYTHON": "./python", "STEP_S": "4", "SAVE_FREQ": "100", "REQUEUE_MARGIN_S": "100000"}
    job = slurm.submit(repository, "scripts/run_trd_tiny_cpu.sh", **knobs, RUN_DIR="runs/a")
    slurm.wait_until((repository / "runs" / "a" / "starts.jsonl").exists, "start")
    slurm.run("scancel", "--signal=USR1", "--batch", job)
    assert slurm.wait(job)["JobState"] == "FAILED"
    printed = (repository / f"{job}-4294967294.out").read_text()
    assert "the step does not end in time" in printed
    assert "no step was saved in this attempt" in printed


@pytest.mark.timeout(1800)
def test_training_on_two_nodes_ends_as_if_nothing_had_happened(slurm, world, tmp_path):
    """The same run twice, once with the signal that comes before a limit: saved, requeued, resumed, same result."""
    # Greedy, so that both runs see the same words whatever the order of requests.
    settings = [
        *("data.train_batch_size=16", "data.val_max_samples=32", "trainer.val_before_train=False"),
        *("actor_rollout_ref.rollout.top_k=1", "trd.rewrite.temperature=0"),
    ]

    def submit(name):
        knobs = {"TOTAL_STEPS": "4", "TEST_FREQ": "4", "SAVE_FREQ": "100", "LR": "2e-3"}
        folders = {"RUN_DIR": str(tmp_path / name), "JOB_ROOT": str(tmp_path / "jobs"), "PYTHON": sys.executable}
        (tmp_path / name).parent.mkdir(exist_ok=True)
        options = [f"--output={tmp_path}/{name}.out", "--nodes=2", "scripts/run_trd_tiny_cpu.sh"]
        return slurm.submit(ROOT, *options, *settings, **knobs, **folders)

    def finish(job, name):
        state = slurm.wait(job, timeout_s=700)
        assert state["ExitCode"] == "0:0", (tmp_path / f"{name}.out").read_text()[-4000:]

    undisturbed = submit("undisturbed")
    finish(undisturbed, "undisturbed")
    interrupted = submit("interrupted")
    printed = tmp_path / "interrupted.out"
    slurm.wait_until(lambda: printed.exists() and "step 1/4" in printed.read_text(), "first step", 500)
    slurm.run("scancel", "--signal=USR1", "--batch", interrupted)
    finish(interrupted, "interrupted")

    assert slurm.job(interrupted)["Restarts"] == "1"
    nodes = {line["name"]: line for line in lines(tmp_path / "jobs" / "results.jsonl")}
    assert [nodes[name]["attempts"] for name in ("undisturbed", "interrupted")] == [1, 2]
    assert nodes["interrupted"]["held_out"] == nodes["undisturbed"]["held_out"]
    metrics = {}
    for name in nodes:
        rows = [line for file in sorted((tmp_path / name).glob("metrics*.jsonl")) for line in lines(file)]
        metrics[name] = {row["step"]: row["data"] for row in rows}
    assert sorted(metrics["interrupted"]) == sorted(metrics["undisturbed"]) == [1, 2, 3, 4]
    for step, expected in metrics["undisturbed"].items():
        got = metrics["interrupted"][step]
        for name in ("actor/trd/divergence", "trd/y_r_acc", "trd/y_o_length/mean"):
            assert got[name] == pytest.approx(expected[name], rel=1e-3), (step, name)
