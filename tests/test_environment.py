import re
import tomllib

import yaml

from haemex.provenance import ROOT

CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "snakemake-minimal": "snakemake"}


def locked(name):
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ \\;]+)", (ROOT / name).read_text(), re.M))


def test_conda_and_lock_file_pin_the_same_versions():
    dependencies = yaml.safe_load((ROOT / "envs/haemex.yaml").read_text())["dependencies"]
    pins = dict(re.split("=+", entry) for entry in dependencies if isinstance(entry, str) and "=" in entry)
    pins.update(re.split("=+", entry) for entry in dependencies[-1]["pip"])
    assert pins.pop("python") == "3.11"
    pins = {CONDA_NAMES.get(name, name): version for name, version in pins.items()}
    lock = locked("requirements.lock")
    assert {name: lock[name] for name in pins} == pins
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = {re.split(r"[=<>\[ ]", entry)[0].lower() for entry in project}
    assert wanted | {"setuptools"} == set(pins)


def test_every_pin_has_digests_and_no_cuda_library_is_forced_on_anyone():
    for name in ("requirements.lock", "requirements-cuda.lock"):
        blocks = re.findall(r"^[a-z0-9].*(?:\n    .*)*", (ROOT / name).read_text(), re.M)
        assert blocks and all("--hash=sha256:" in block for block in blocks)
    assert not [name for name in locked("requirements.lock") if name.startswith(("nvidia", "cuda", "triton"))]
    assert all(name.startswith(("nvidia", "cuda", "triton")) for name in locked("requirements-cuda.lock"))


def test_every_rule_names_the_environment():
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        text = path.read_text()
        assert len(re.findall(r"^rule ", text, re.M)) == text.count('"../../envs/haemex.yaml"'), path
