"""The small programs that the nodes of a job run, as the shell runs them."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "scripts" / "slurm"


def run(tool, *arguments):
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_ports_are_different_and_free():
    ports = [int(port) for port in run("network.py", "ports", 5).stdout.split()]
    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("", port))


def test_the_interface_that_was_asked_for_is_taken_and_an_unknown_one_refused():
    assert run("network.py", "address", "--interface", "lo").stdout.split() == ["127.0.0.1", "lo"]
    refused = run("network.py", "address", "--interface", "ib9")
    assert refused.returncode == 2
    assert "INTERFACE=ib9: no such interface is up here; there are ['" in refused.stderr


@pytest.mark.parametrize("peer", ["", "no-such-host.invalid", "localhost"])
def test_without_one_it_is_an_address_of_this_machine(peer):
    address, interface = run("network.py", "address", "--peer", peer, "--interface", "").stdout.split()
    with socket.socket() as probe:
        probe.bind((address, 0))
    assert interface in {name for _, name in socket.if_nameindex()}


@pytest.fixture
def folders(tmp_path):
    run_dir, job_dir = tmp_path / "grpo-tiny-seed1", tmp_path / "7_2-grpo-tiny-seed1"
    for folder in (run_dir, job_dir / "0", job_dir / "1", job_dir / "code"):
        folder.mkdir(parents=True)
    (job_dir / "commit.txt").write_text("abc\n")
    return run_dir, job_dir


def result(folders, tmp_path, exit_code):
    run_dir, job_dir = folders
    results = tmp_path / "results.jsonl"
    options = ["--job-dir", job_dir, "--exit-code", exit_code, "--results", results]
    assert run("result_line.py", run_dir, *options).returncode == 0
    return json.loads(results.read_text().splitlines()[-1])


def test_a_finished_run_has_a_line_with_its_result(folders, tmp_path):
    run_dir, _ = folders
    last = {"step": 4, "mean": 0.25, "standard_error": 0.1}
    summary = {"last_step": 4, "held_out": {"first": {"mean": 0.1}, "last": last}, "seconds": {"total": 9.5}}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    (run_dir / "config.yaml").write_text("trd:\n  method: grpo\ndata:\n  seed: 1\n")
    line = result(folders, tmp_path, 0)
    expected = {
        "job": "7_2",
        "name": "grpo-tiny-seed1",
        "state": "finished",
        "method": "grpo",
        "seed": 1,
        "last_step": 4,
    }
    expected |= {"held_out": 0.25, "standard_error": 0.1, "seconds": 9.5, "attempts": 2, "commit": "abc"}
    assert {key: line[key] for key in expected} == expected


@pytest.mark.parametrize("summary", [None, '{"last_step": 4}', '{"last_st'])
def test_a_failed_run_has_a_line_without_an_old_result(folders, tmp_path, summary):
    if summary is not None:
        (folders[0] / "summary.json").write_text(summary)
    line = result(folders, tmp_path, 1)
    assert (line["state"], line["last_step"], line["held_out"]) == ("failed (1)", None, None)
