"""Which code made a run: versions, commit, and no word of the machine."""

import json
import subprocess

from omegaconf import OmegaConf

from recipe.trd.reports import provenance


def test_provenance_names_code_and_versions_but_no_machine(tmp_path):
    provenance.write_provenance(tmp_path, OmegaConf.create({"a": 1, "b": "${a}"}))
    provenance.record_startup(tmp_path, 12.34)
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert set(versions) == {"packages", "commit", "dirty", "startup_seconds"}
    assert set(versions["packages"]) == {"python", *provenance.PACKAGES}
    assert versions["startup_seconds"] == 12.3
    assert OmegaConf.load(tmp_path / "config.yaml") == {"a": 1, "b": 1}


def test_commit_and_dirty_flag_of_a_repository(tmp_path, monkeypatch):
    file = tmp_path / "recipe" / "trd" / "reports" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert provenance._commit() == {"commit": None, "dirty": None}
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    head = subprocess.run(["git", "-C", tmp_path, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert provenance._commit() == {"commit": head.stdout.strip(), "dirty": False}
    (file.parent / "new.py").write_text("")
    assert provenance._commit()["dirty"] is True
