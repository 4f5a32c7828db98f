"""One new patient by the command line: what is written, what is refused, and that nothing is left behind then."""

import json
import os
import re
import shutil
import subprocess
import sys

import pydicom
import pytest
from conftest import UID_ROOT
from fabricated_bundle import PREPARATION, make_bundle

from haemex.command_line import main
from haemex.nifti import read_volume
from haemex.phantom import make_patient
from haemex.phantom_cohort import draw_patients

SEED = 12
# Wide enough that no haematoma is cut off; coarse, for the test's sake.
RESAMPLE = {
    "field_of_view_mm": [200.0, 200.0, 180.0],
    "matrix": [16, 16, 16],
    "spline_order": 3,
    "window_hu": [0.0, 100.0],
}


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """The hospital's export of one synthetic patient."""
    folder = tmp_path_factory.mktemp("hospital")
    patient = draw_patients({"train": 8, "test": 6, "excluded_each": 0, "matrix": 96}, SEED)[0]
    make_patient(patient, folder, 96, SEED)
    return folder / patient["row"]["patient"] / "baseline"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("model"), preparation={**PREPARATION, "resample": RESAMPLE})


@pytest.fixture(scope="module")
def predicted(scan, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "prediction"
    status = main(["predict", str(scan), "--model", str(model), "--output", str(out), "--patient", "N7"])
    return status, out, json.loads((out / "prediction.json").read_text())


def test_all_that_is_promised_is_there(predicted):
    status, out, found = predicted
    # Weights that learnt nothing mark half the head: the model must not answer, and the page says why.
    assert status == 3 and found["abstained"] and found["reasons"]
    assert found["probability"] is None and found["positive"] is None
    names = {path.name for path in out.iterdir()}
    assert names == {"prediction.html", "prediction.json", "haematoma.nii.gz", "haematoma.dcm", "stages"}
    page = (out / "prediction.html").read_text()
    assert "No answer" in page and all(reason.split(" ")[0] in page for reason in found["reasons"])
    assert "Not a medical device" in page and "N7" in page
    assert found["haematoma_ml"] == pytest.approx(volume_ml(out / "haematoma.nii.gz"))


def volume_ml(path):
    import numpy as np

    mask, affine = read_volume(path)
    return float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)


def test_the_page_needs_no_network_and_names_nobody(predicted, scan):
    _, out, _ = predicted
    page = (out / "prediction.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    header = pydicom.dcmread(next(scan.iterdir()))
    secrets = [str(header.get(name)) for name in ("PatientName", "PatientID", "InstitutionName", "AccessionNumber")]
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in secrets:
                assert secret.encode() not in content, (path.name, secret)
            if path.suffix != ".dcm":  # a segmentation has to name the images it belongs to
                assert UID_ROOT.encode() not in content, path.name


def test_the_same_scan_gives_the_same_bytes(predicted, scan, model, tmp_path):
    _, out, _ = predicted
    again = tmp_path / "again"
    main(["predict", str(scan), "--model", str(model), "--output", str(again), "--patient", "N7"])
    for path in out.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(out)).read_bytes(), path.name


@pytest.mark.parametrize(
    ("known", "line"),
    [
        (
            (0.254, 0.1249, 14.36, 4),
            "probability 0.25, standard deviation of the fold models 0.12, haematoma 14.4 mL, BAT score 4",
        ),
        ((0.254, None, 14.36, None), "probability 0.25, haematoma 14.4 mL"),
        ((None, None, 0.0, None), "haematoma 0.0 mL"),
    ],
)
def test_the_terminal_says_what_the_page_says(monkeypatch, capsys, known, line):
    found = dict(zip(("probability", "ensemble_sd", "haematoma_ml", "bat_score"), known, strict=True))
    found |= {"abstained": known[0] is None, "positive": False, "reasons": []}
    monkeypatch.setattr("haemex.new_patient.predict_new_patient", lambda *_, **__: found)
    status = main(["predict", "SCAN", "--model", "MODEL", "--output", "OUT"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(f": {line}") and status == (3 if known[0] is None else 0)
    assert "OUT/prediction.html" in said[-1] and "not a medical device" in said[-1]


def test_onset_gives_the_bat_score(predicted, scan, model, tmp_path):
    _, _, without = predicted
    assert without["bat_score"] is None
    out = tmp_path / "out"
    main(["predict", str(scan), "--model", str(model), "--output", str(out), "--onset-to-ct-h", "1.5", "--single"])
    found = json.loads((out / "prediction.json").read_text())
    markers = found["markers"]
    assert (markers is None) == (not 0 < found["haematoma_ml"] <= 300)
    if markers is not None and None not in (markers["blend"]["present"], markers["hypodensity"]["present"]):
        assert found["bat_score"] == markers["blend"]["present"] + 2 * markers["hypodensity"]["present"] + 2
    assert found["ensemble_sd"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scan": "/nowhere"}, "no such folder"),
        ({"--model": "/nowhere"}, "model.json"),
        ({"--patient": "Jane Doe"}, "letters and digits"),
        ({"--onset-to-ct-h": "-3"}, "hours from onset"),
        ({"--series": "99"}, "99"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(scan, model, tmp_path, capsys, change, words):
    options = {"--model": str(model), "--output": str(tmp_path / "out"), **change}
    taken = options.pop("scan", str(scan))
    status = main(["predict", taken, *(part for option in options.items() for part in option)])
    said = capsys.readouterr().err.strip().splitlines()
    assert status == 1
    assert said[-1].startswith("haemex: ") and words in said[-1] and "Traceback" not in "".join(said)
    assert not (tmp_path / "out").exists()


def test_a_scan_among_thousands_of_other_files_is_found(predicted, scan, model, tmp_path):
    """An export with a viewer, pictures and reports on it: the same answer, byte for byte."""
    _, out, _ = predicted
    shutil.copytree(scan, tmp_path / "export/DICOM/A1")
    for number in range(3000):
        file = tmp_path / f"export/VIEWER/part{number % 30}/{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\xff\xd8\xff\xe0" + number.to_bytes(2, "big") * 100)
    main(
        ["predict", str(tmp_path / "export"), "--model", str(model), "--output", str(tmp_path / "a"), "--patient", "N7"]
    )
    for name in ("haematoma.nii.gz", "haematoma.dcm", "prediction.json"):
        assert (out / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


@pytest.mark.parametrize("closed", ["one slice", "the folder", "the model", "the output"])
def test_what_may_not_be_read_or_written_is_one_sentence(scan, model, tmp_path, closed):
    may = []  # what makes this process subject to permissions
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root may read and write everything, and there is no setpriv to give that up")
        may = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    shutil.copytree(scan, tmp_path / "scan")
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "there").mkdir()
    closed_path = {
        "one slice": sorted(path for path in (tmp_path / "scan").iterdir())[3],
        "the folder": tmp_path / "scan",
        "the model": tmp_path / "model/model.safetensors",
        "the output": tmp_path / "there",
    }[closed]
    closed_path.chmod(0o555 if closed == "the output" else 0o000)
    command = [*may, sys.executable, "-m", "haemex", "predict", tmp_path / "scan", "--model", tmp_path / "model"]
    run = subprocess.run([*command, "--output", tmp_path / "there/out"], capture_output=True, text=True)
    closed_path.chmod(0o755)
    said = run.stderr.strip().splitlines()
    assert run.returncode == 1 and "Traceback" not in run.stderr, run.stderr
    assert said[-1].startswith("haemex: ") and closed_path.name in said[-1], run.stderr
    assert list((tmp_path / "there").iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(scan, model, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    status = main(["predict", str(scan), "--model", str(model), "--output", str(tmp_path / "out")])
    assert status == 1 and "not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_failure_half_way_leaves_an_empty_folder_empty(scan, model, tmp_path, capsys):
    damaged = tmp_path / "model"
    shutil.copytree(model, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    (tmp_path / "out").mkdir()
    status = main(["predict", str(scan), "--model", str(damaged), "--output", str(tmp_path / "out")])
    assert status == 1 and "model.safetensors" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_travels_as_one_file(model, tmp_path, capsys):
    assert main(["export", str(model), str(tmp_path / "model.zip")]) == 0
    assert main(["check-model", str(tmp_path / "model.zip")]) == 0
    assert main(["import", str(tmp_path / "model.zip"), str(tmp_path / "there")]) == 0
    said = capsys.readouterr().out.splitlines()
    digest = said[0].rpartition(" ")[2]
    assert all(line.endswith(digest) for line in said) and "3 patients, 1 with expansion" in said[1]
    for path in model.iterdir():
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()
    (tmp_path / "model.zip").write_bytes(b"PK nothing")
    assert main(["check-model", str(tmp_path / "model.zip")]) == 1
