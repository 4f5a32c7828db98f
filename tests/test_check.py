"""The check of a whole cohort: six small patients in whom nothing is wrong, and one change at a time."""

import copy
import csv
import datetime
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import yaml

from haemex import check, disk_space
from haemex.check_scans import _judge_density, _start
from haemex.errors import InputError
from haemex.nifti import read_volume, write_volume
from haemex.provenance import ROOT
from haemex.settings import load_schema

SLICES, SIZE, PIXEL = 7, 44, 4.0
HEIGHTS = np.arange(SLICES) * 21.0  # few slices, a whole head
AFFINE = np.array([[-PIXEL, 0, 0, 20], [0, -PIXEL, 0, 30], [0, 0, 21, 0], [0, 0, 0, 1]])
COLUMNS = list(load_schema(ROOT / "config/cohort.schema.yaml")["properties"])
PATIENTS = ("P1", "P2", "P3", "P4")
MARKERS = ("hypodensity", "black_hole", "swirl", "blend", "fluid_level", "irregular_shape", "heterogeneous_density")
HISTORY = ("hypertension", "diabetes", "prestroke", "antiplatelet", "anticoagulation", "intraventricular_haemorrhage")


def haematoma(radius):
    """A ball of blood on the left of the image, mask (z, y, x)."""
    z, y, x = np.mgrid[:SLICES, :SIZE, :SIZE]
    return (((z - 2) / 1.4) ** 2 + ((y - 19) / radius) ** 2 + ((x - 14) / radius) ** 2 < 1).astype(np.uint8)


def head(seed, mask):
    """HU of a head with a haematoma, (z, y, x)."""
    y, x = np.mgrid[:SIZE, :SIZE] - 21.5
    hu = np.full((SLICES, SIZE, SIZE), -1000.0)
    hu[:, np.hypot(y / 20, x / 18) < 1] = 900
    hu[:, np.hypot(y / 18, x / 16) < 1] = 30
    hu[mask > 0] = 65
    return np.rint(hu + np.random.default_rng(seed).normal(0, 3, hu.shape)).astype(int)


class Cohort:
    """A table with its files; `problems()` runs the check."""

    def __init__(self, folder, write_series):
        self.folder, self.write_series = folder, write_series
        self.rows = {}
        for number, patient in enumerate(PATIENTS):
            row = dict.fromkeys(COLUMNS, "") | dict.fromkeys((*MARKERS, *HISTORY), "1")
            row |= {
                "patient": patient,
                "admission_date": "2015-03-01" if number < 2 else "2019-03-01",
                "age_years": "61",
                "sex": "m",
                "haemorrhage_site": "supratentorial",
                "onset_to_ct_h": "3",
                "ct_to_followup_h": "22",
                "died_or_surgery_before_followup": "0",
                "poor_image_quality": "0",
                "nihss": "7",
            }
            for time, radius in (("baseline", 4.0), ("followup", 6.0 if number % 2 else 4.0)):
                mask = haematoma(radius)
                row[f"{time}_ct"] = str(self.scan(patient, time, head(10 * number + (time == "followup"), mask)))
                row[f"{time}_mask"] = str(folder / patient / f"{time}.nii.gz")
                write_volume(row[f"{time}_mask"], mask, AFFINE)
            self.rows[patient] = row

    def scan(self, patient, name, hu, heights=HEIGHTS, **tags):
        tags = {
            "PatientID": f"HOSP{patient}",
            "PatientSex": "M",
            "PatientAge": "061Y",
            "AcquisitionDate": ("20150301", "20190301")[patient > "P2"][:-1]
            + ("2" if name.startswith("followup") else "1"),
            "AcquisitionTime": "080000" if name.startswith("followup") else "100000",
            **tags,
        }
        folder = self.folder / patient / name
        return self.write_series(folder, heights, (hu + 1024).astype(np.uint16), spacing=(PIXEL, PIXEL), **tags)

    def mask(self, patient, change, column="baseline_mask"):
        array, affine = read_volume(self.rows[patient][column])
        write_volume(self.rows[patient][column], np.ascontiguousarray(change(array)), affine)

    def headers(self, patient, column, **tags):
        for path in Path(self.rows[patient][column]).iterdir():
            dataset = pydicom.dcmread(path)
            for keyword, value in tags.items():
                setattr(dataset, keyword, value)
            dataset.save_as(path)

    def write(self):
        table = self.folder / "cohort.tsv"
        lines = ["\t".join(COLUMNS), *("\t".join(row.values()) for row in self.rows.values())]
        table.write_text("\n".join(lines) + "\n")
        return table

    def run(self, **changes):
        config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
        out = self.folder / "out"
        out.mkdir(exist_ok=True)
        settings = {
            "study": "small",
            "table_path": self.write(),
            **{name: config[name] for name in ("eligibility", "cohorts", "expansion", "network")},
            "folds": 1,
            "slice_thickness_mm": 5.0,
            "matrix": [32, 32, 16],
            "field_of_view_mm": [112.0, 112.0, 160.0],
            "copies": 2,
            "candidates": 1,
            "results": out,
            "threads": 1,
            "template_folder": ROOT / "workflow/report",
            "problems_path": out / "problems.tsv",
            "page_path": out / "index.html",
            "verdict_path": out / "verdict.json",
            **changes,
        }
        check.check_study(**settings)

    def problems(self, **changes):
        (self.folder / "out" / "verdict.json").unlink(missing_ok=True)
        try:
            self.run(**changes)
        except InputError as refused:
            assert "index.html" in str(refused)
        with open(self.folder / "out/problems.tsv", newline="") as file:
            found = list(csv.DictReader(file, delimiter="\t"))
        assert [one["severity"] for one in found] == sorted(one["severity"] for one in found)
        assert all(tuple(one) == ("patient", "severity", "file", "problem", "action") for one in found)
        errors = sum(one["severity"] == "error" for one in found)
        assert (self.folder / "out/verdict.json").exists() == (not errors)
        page = (self.folder / "out/index.html").read_text()
        assert page.count('<tr class="error">') == errors
        assert page.count('<tr class="warning">') == len(found) - errors
        return found

    def found(self, **changes):
        return [(one["patient"], one["severity"], one["problem"]) for one in self.problems(**changes)]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    from tests.conftest import _write_series

    return Cohort(tmp_path_factory.mktemp("cohort"), _write_series)


@pytest.fixture
def cohort(template, tmp_path):
    """A copy of the four patients that a test may spoil."""
    for patient in PATIENTS:
        shutil.copytree(template.folder / patient, tmp_path / patient)
    mine = copy.copy(template)
    mine.rows = {
        patient: {name: value.replace(str(template.folder), str(tmp_path)) for name, value in row.items()}
        for patient, row in template.rows.items()
    }
    mine.folder = tmp_path
    return mine


def test_nothing_is_wrong(cohort):
    assert cohort.found() == []
    assert json.loads((cohort.folder / "out/verdict.json").read_text()) == {"errors": 0, "patients": 4, "warnings": 0}
    page = (cohort.folder / "out/index.html").read_text()
    assert "The study can start" in page and "It fits on the disk" in page


def test_the_same_bytes_whatever_the_number_of_threads(cohort):
    cohort.rows["P1"]["sex"] = cohort.rows["P3"]["sex"] = ""
    cohort.rows["P2"]["baseline_ct"] = "nowhere"
    texts = []
    for threads in (1, 5):
        cohort.problems(threads=threads)
        texts.append([(cohort.folder / "out" / name).read_bytes() for name in ("problems.tsv", "index.html")])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("change", "severity", "problem"),
    [
        ({"followup_volume_ml": "8.5"}, "error", "a follow-up mask and a follow-up volume of 8.5 mL are both given"),
        ({"followup_mask": ""}, "error", "neither a follow-up mask nor a follow-up volume"),
        ({"followup_mask": "", "followup_ct": ""}, "error", "and no follow-up CT"),
        ({"followup_ct": ""}, "error", "a follow-up mask without its CT"),
        ({"baseline_ct": ""}, "error", "`baseline_ct` is missing"),
        ({"baseline_mask": ""}, "error", "`baseline_mask` is missing"),
        ({"baseline_ct": "nowhere"}, "error", "there is no such folder"),
        ({"baseline_mask": "nowhere.nii.gz"}, "error", "`baseline_mask`: there is no such file"),
        ({"baseline_mask_rater2": "nowhere.nrrd"}, "error", "`baseline_mask_rater2`: there is no such file"),
        ({"baseline_series": "9"}, "error", "no series 9"),
        ({"admission_date": ""}, "error", "`admission_date` is empty"),
        ({"swirl": "", "sex": ""}, "warning", "missing: sex, swirl"),
        ({"poor_image_quality": ""}, "warning", "`poor_image_quality` is empty and taken for 0"),
        ({"onset_to_ct_h": "0"}, "warning", "`onset_to_ct_h` is 0"),
        ({"age_years": ""}, "warning", "left out, as nothing is known of age_years"),
        ({"sex": "f"}, "warning", "the headers state the other sex than the table"),
        ({"age_years": "63"}, "warning", "the age in the headers differs"),
        ({"ct_to_followup_h": "20"}, "", ""),
        ({"ct_to_followup_h": "24"}, "", ""),
        ({"admission_date": "2015-02-27"}, "", ""),
        ({"admission_date": "2015-03-03"}, "", ""),
        ({"admission_date": "2015-02-26"}, "warning", "3 days after `admission_date`"),
        ({"admission_date": "2015-03-04"}, "warning", "3 days before `admission_date`"),
        ({"age_years": "62"}, "", ""),
        ({"followup_mask": "", "followup_ct": "", "followup_volume_ml": "30"}, "", ""),
        ({"sex": "Male"}, "error", "line 3, column `sex`: `Male` is unknown"),
        ({"age_years": "61,5"}, "error", "line 3, column `age_years`: `61,5` has a decimal comma"),
        ({"patient": "P_2"}, "error", "line 3, column `patient`"),
    ],
)
def test_one_problem(cohort, change, severity, problem):
    cohort.rows["P2"] |= change
    found = [one for one in cohort.found() if "cohort has" not in one[2] and "cohort is" not in one[2]]
    if not severity:
        assert found == []
        return
    (one,) = found
    assert one[:2] == ("line3" if "patient" in change else "P2", severity)
    assert problem in one[2]


def test_contradictions_of_patients_who_stay_out(cohort):
    cohort.rows["P1"] |= {"died_or_surgery_before_followup": "1", "baseline_ct": "not looked at"}
    cohort.rows["P2"] |= {"haemorrhage_site": "ventricular", "intraventricular_haemorrhage": "0"}
    cohort.rows["P3"] |= {"onset_to_ct_h": "180"}
    found = cohort.found()
    assert [one[:2] for one in found] == [
        ("", "error"),
        ("", "error"),
        ("P1", "warning"),
        ("P2", "warning"),
        ("P3", "warning"),
    ]
    assert "the training cohort is empty" in found[0][2]
    assert "test cohort has 1 patients, 1 of them with expansion" in found[1][2]
    assert "gives ct_to_followup_h, followup_ct, followup_mask" in found[2][2]
    assert "`intraventricular_haemorrhage` is 0" in found[3][2]
    assert "`onset_to_ct_h` is 180" in found[4][2]
    page = (cohort.folder / "out/index.html").read_text()
    left_out = page[page.index('<section id="left-out">') : page.index('<section id="disk">')]
    assert re.findall(r"<tr><th>(.*?)</th><td class=\"n\">(\d)</td><td>(.*?)</td>", left_out) == [
        ("baseline CT too late after onset", "1", "P3"),
        ("haemorrhage in the ventricles only", "1", "P2"),
        ("death, deterioration or surgery before the follow-up CT", "1", "P1"),
    ]


def test_faults_of_the_table_hide_no_other_problem(cohort):
    cohort.rows["P1"] |= {"age_years": "NA", "baseline_ct": "nowhere"}
    cohort.rows["P2"] |= {"admission_date": "1.3.2015"}
    cohort.mask("P2", lambda mask: mask * 0)
    cohort.rows["again"] = dict(cohort.rows["P3"])
    cohort.rows["p4"] = cohort.rows["P4"] | {"patient": "p4", "poor_image_quality": "1"}
    found = cohort.found()
    assert [one[0] for one in found if one[1] == "error"] == ["P1", "P1", "P2", "P2", "P3", "p4"]
    text = "\n".join(one[2] for one in found)
    for words in ("`NA` stands", "no such folder", "no date", "mask is empty", "stands twice", "differ in case"):
        assert words in text
    assert "cohort has" not in text and "1.3.2015" not in text


def test_a_column_empty_throughout_is_said_once(cohort):
    for row in cohort.rows.values():
        row["swirl"] = row["nihss"] = ""
    cohort.rows["P1"]["diabetes"] = ""
    assert cohort.found() == [
        ("", "warning", "no patient who enters has a value of: nihss, swirl"),
        ("P1", "warning", "missing: diabetes"),
    ]


def test_an_admission_in_the_future(cohort):
    cohort.rows["P1"]["admission_date"] = "2015-03-03"
    assert cohort.found(today=datetime.date(2015, 3, 2))[0][2] == "`admission_date` lies in the future"


def test_paths_that_are_named_twice(cohort):
    link = cohort.folder / "link"
    link.symlink_to(cohort.folder / "P1" / "baseline")
    cohort.rows["P2"]["baseline_ct"] = str(link)
    cohort.rows["P4"]["followup_mask"] = cohort.rows["P4"]["baseline_mask"]
    cohort.rows["P3"]["followup_ct"] = str(cohort.folder / "P3")
    problems = cohort.found()
    assert ("P2", "error", "`baseline_ct` is also `baseline_ct` of patient P1") in problems
    assert ("P4", "error", "`followup_mask` is also `baseline_mask`") in problems
    assert any("stands inside `followup_ct` of patient P3" in one[2] for one in problems)
    assert not any("their pixels agree" in one[2] for one in problems)  # said already


def test_masks_beside_the_dicom_files_are_fine(cohort):
    inside = cohort.folder / "P1/baseline/mask.nii.gz"
    shutil.copy(cohort.rows["P1"]["baseline_mask"], inside)
    cohort.rows["P1"]["baseline_mask"] = str(inside)
    assert cohort.found() == []


# --- the same scan, the same person --------------------------------------------------------------------------------


def test_a_copied_scan_is_found_by_its_pixels(cohort):
    source = sorted(Path(cohort.rows["P1"]["baseline_ct"]).iterdir())
    copied = cohort.folder / "P3/copy"
    copied.mkdir()
    for number, path in enumerate(source):  # other names, order, compression, offset, and nobody's name
        dataset = pydicom.dcmread(path)
        dataset.PixelData = (dataset.pixel_array.astype(np.int16) - 1000).astype("<i2").tobytes()
        dataset.PixelRepresentation, dataset.RescaleIntercept = 1, -24
        dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        dataset.PatientID = "X"
        dataset.save_as(copied / f"{99 - number}.dcm")
    cohort.rows["P3"]["baseline_ct"] = str(copied)
    problems = cohort.found()
    where = cohort.rows["P1"]["baseline_ct"]
    said = f"the baseline CT shows the same pixels as the baseline CT of patient P1 ({where}): one scan under two "
    assert ("P3", "error", said + "patients") in problems


def test_scans_that_share_some_slices_only_are_not_the_same(cohort):
    # As where synthetic haematomas are put into one real head: slices that none of them reaches are the same in all.
    mask, _ = read_volume(cohort.rows["P1"]["baseline_mask"])
    shared = head(8, mask)
    other = shared.copy()
    other[0, 0, 0] += 1
    cohort.rows["P1"]["baseline_ct"] = str(cohort.scan("P1", "again", shared))
    cohort.rows["P3"] |= {"baseline_ct": str(cohort.scan("P3", "again", other)), "baseline_mask": ""}
    assert not any("same pixels" in one[2] for one in cohort.found())


def test_a_copy_damaged_beyond_its_middle_slice_is_named(cohort):
    copied = cohort.folder / "P3/copy"
    shutil.copytree(cohort.rows["P1"]["baseline_ct"], copied)
    last = max(copied.iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    last.write_bytes(last.read_bytes()[:-100])
    cohort.rows["P3"] |= {"baseline_ct": str(copied), "baseline_mask": ""}
    assert any(one[:2] == ("P3", "error") and "cut off within its pixels" in one[2] for one in cohort.found())


def test_a_dicom_scan_and_its_nifti_copy_are_the_same(cohort):
    mask, _ = read_volume(cohort.rows["P1"]["baseline_mask"])
    hu = head(8, mask)
    ras = np.diag([PIXEL, PIXEL, 21.0, 1.0])
    write_volume(cohort.folder / "copy.nii.gz", hu[:, ::-1, ::-1].astype(np.int16), ras)
    cohort.rows["P1"]["baseline_ct"] = str(cohort.scan("P1", "again", hu))
    cohort.rows["P3"] |= {"baseline_ct": str(cohort.folder / "copy.nii.gz"), "baseline_mask": ""}
    assert any("same pixels as the baseline CT of patient P1" in one[2] for one in cohort.found())


def test_one_scan_as_baseline_and_followup(cohort):
    shutil.rmtree(cohort.rows["P2"]["followup_ct"])
    shutil.copytree(cohort.rows["P2"]["baseline_ct"], cohort.rows["P2"]["followup_ct"])
    problems = [one[2] for one in cohort.found() if one[:2] == ("P2", "error")]
    assert problems == [
        "baseline and follow-up were scanned at the same time, by their headers",
        "baseline and follow-up CT show the same pixels: one scan is given twice",
    ]


def test_a_number_shared_by_two_patients_and_not_by_all(cohort):
    for column in ("baseline_ct", "followup_ct"):
        cohort.headers("P3", column, PatientID="HOSPP1")
    assert cohort.found() == [("P3", "warning", "the headers state the same patient ID as those of P1")]
    for patient in PATIENTS:
        for column in ("baseline_ct", "followup_ct"):
            cohort.headers(patient, column, PatientID="EXPORT")
    assert cohort.found() == []


def test_another_persons_followup(cohort):
    cohort.headers("P2", "followup_ct", PatientID="OTHER", PatientBirthDate="19330303", PatientSex="F")
    (one, other) = cohort.problems()
    assert other["problem"] == (
        "the headers of baseline and follow-up state different patient IDs, sexes and birth dates"
    )
    assert one["problem"] == "the headers state the other sex than the table (follow-up alone)"


# --- times ---------------------------------------------------------------------------------------------------------


def header(**tags):
    dataset = pydicom.Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


@pytest.mark.parametrize(
    ("tags", "moment"),
    [
        ({"AcquisitionDate": "20150301", "AcquisitionTime": "101530.5"}, ("2015-03-01T10:15:30", True)),
        ({"AcquisitionDateTime": "20150301101530.000+0100", "StudyDate": "20160101"}, ("2015-03-01T10:15:30", True)),
        ({"AcquisitionDate": "", "StudyDate": "20150301", "StudyTime": "1015"}, ("2015-03-01T10:15:00", True)),
        ({"SeriesDate": "20150301", "StudyDate": "20140101"}, ("2015-03-01T00:00:00", False)),
        ({"StudyDate": "2015.03.01", "StudyTime": "000000"}, ("2015-03-01T00:00:00", False)),
        ({"StudyDate": "19000101"}, None),
        ({}, None),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_when_a_scan_was_made(tags, moment):
    start = _start([header(**tags)])
    assert (start and (start[0].isoformat(), start[1])) == moment


def test_the_first_image_counts():
    times = [header(AcquisitionDate="20150301", AcquisitionTime=time) for time in ("101502", "101501", "101503")]
    assert _start(times)[0].second == 1


@pytest.mark.parametrize(
    ("day", "time", "stated", "severity", "problem"),
    [
        ("20150302", "080000", "22", "", ""),
        ("20150302", "055900", "22", "warning", "scanned 20.0 h after the baseline CT, by their headers, and `ct_to_f"),
        ("20150302", "120001", "24", "warning", "scanned 26.0 h after"),
        ("20150302", "120000", "24", "", ""),
        ("20150301", "093000", "22", "error", "scanned 0.5 h before the baseline CT"),
        ("20150301", "100000", "22", "error", "at the same time"),
        ("20140301", "100000", "22", "warning", "scanned 365 days before the baseline CT"),
        ("20150302", "000000", "22", "", ""),
        ("20150304", "000000", "22", "warning", "scanned 3 days after"),
        ("20150228", "000000", "22", "error", "scanned 1 day before"),
        ("19000101", "000000", "22", "", ""),
    ],
)  # fmt: skip
def test_the_time_between_the_scans(cohort, day, time, stated, severity, problem):
    cohort.rows["P2"]["ct_to_followup_h"] = stated
    cohort.headers("P2", "followup_ct", AcquisitionDate=day, AcquisitionTime=time, StudyDate="19000101")
    found = cohort.found()
    assert [one[:2] for one in found] == [("P2", severity)] * bool(severity)
    assert not severity or problem in found[0][2]


def test_shifted_dates_are_said_once_for_the_cohort(cohort):
    for number, patient in enumerate(PATIENTS):
        cohort.headers(patient, "baseline_ct", AcquisitionDate=f"1999010{number + 1}")
    first, second = cohort.found()
    assert first[:2] == second[:2] == ("", "warning")
    assert "in 4 of 4 patients the baseline CT lies more than 2 days from `admission_date`" in first[2]
    assert "in 4 of 4 patients the time between the scans" in second[2]


def test_minutes_for_hours_throughout_are_said_once(cohort):
    for row in cohort.rows.values():
        row["onset_to_ct_h"] = "150"
    found = [one[2] for one in cohort.found() if one[1] == "warning"]
    assert found == ["in 4 of 4 patients `onset_to_ct_h` is 150 (patient P1, and others)"]


# --- series and geometry -------------------------------------------------------------------------------------------


def test_a_choice_that_is_the_users_and_how_it_is_made(cohort):
    mask, _ = read_volume(cohort.rows["P1"]["baseline_mask"])
    for name, number in (("one", 4), ("two", 5)):
        tags = {"SeriesNumber": number, "SeriesInstanceUID": f"1.2.{number}", "AcquisitionDate": "20150301"}
        cohort.scan("P1", f"both/{name}", head(8, mask), **tags, AcquisitionTime="100000")
    cohort.rows["P1"]["baseline_ct"] = str(cohort.folder / "P1/both")
    (one,) = cohort.problems()
    assert "2 series fit equally well: series 4 (7 files, 5 mm); series 5" in one["problem"]
    assert "`baseline_series`" in one["action"]
    page = (cohort.folder / "out/index.html").read_text()
    assert "no series, 2 found" in page and page.count("none was taken, see the errors") == 2
    assert page.count("<details open>") == 1 and page.count("<details>") == 3  # where the user has to choose
    cohort.rows["P1"]["baseline_series"] = "5"
    assert cohort.found() == []
    page = (cohort.folder / "out/index.html").read_text()
    rows = re.findall(r"<tr( class=\"taken\")?><td>(\d)</td><td class=\"n\">7</td>", page)
    assert (' class="taken"', "5") in rows and ("", "4") in rows
    assert "<details open>" not in page


def test_headers_that_cannot_be_used(cohort):
    for lost in ("001", "002", "003"):
        (cohort.folder / "P1/followup" / lost).unlink()
    for path in Path(cohort.rows["P2"]["baseline_ct"]).iterdir():
        path.write_bytes(b"")
    mask, _ = read_volume(cohort.rows["P3"]["followup_mask"])
    uneven = [0, 21, 40, 63, 84, 105, 126.0]
    cohort.rows["P3"]["followup_ct"] = str(cohort.scan("P3", "followup/uneven", head(8, mask), uneven))
    shutil.rmtree(cohort.folder / "P4/followup")
    half = cohort.scan("P4", "followup", head(7, mask), HEIGHTS / 2, SliceThickness=10.0)
    cohort.rows["P4"] |= {"followup_ct": str(half), "followup_mask": "", "followup_volume_ml": "200"}
    found = cohort.found()
    assert [one[:2] for one in found] == [
        ("P1", "error"), ("P2", "error"), ("P3", "warning"), ("P4", "warning"), ("P4", "warning"), ("P4", "warning"),
    ]  # fmt: skip
    for one, words in zip(
        found,
        (
            "only 4 slices",
            "no DICOM image",
            "unevenly",
            "10 mm where 5",
            "cover only 63",
            "baseline slices of 5 mm, follow-up slices of 10 mm",
        ),
        strict=True,
    ):
        assert words in one[2]


def test_another_kind_of_image_at_followup(cohort):
    cohort.headers("P2", "followup_ct", ConvolutionKernel="H70h")
    assert ("P2", "warning", "the follow-up alone has a bone kernel") in cohort.found()


def test_cut_pixels_are_found_in_the_slices_looked_at(cohort):
    for path in Path(cohort.rows["P2"]["baseline_ct"]).iterdir():
        path.write_bytes(path.read_bytes()[:-2000])
    assert [one[:2] for one in cohort.found()] == [("P2", "error")]


def test_a_file_name_in_an_old_encoding_is_reported_like_any_other(cohort):
    folder = Path(cohort.rows["P1"]["baseline_ct"])
    damaged = os.fsencode(folder) + b"/Sch\xe4del.dcm"
    first = min(folder.iterdir())
    Path(os.fsdecode(damaged)).write_bytes(first.read_bytes()[:600])
    first.unlink()
    (one,) = [one for one in cohort.problems() if one["severity"] == "error" and one["patient"] == "P1"]
    assert one["file"].endswith("Sch?del.dcm") and "breaks off" in one["problem"]


def test_a_text_where_a_path_belongs_hides_no_other_problem(cohort):
    # The system refuses to look for so long a name, as it does where somebody may not look.
    for patient, column in (("P1", "baseline_ct"), ("P2", "baseline_mask"), ("P3", "followup_mask")):
        cohort.rows[patient][column] = "the disc was not delivered; " * 12
    found = [(one["patient"], one["problem"]) for one in cohort.problems() if one["severity"] == "error"]
    assert ("P1", "there is no such folder") in found
    assert ("P2", "`baseline_mask`: there is no such file") in found
    assert ("P3", "`followup_mask`: there is no such file") in found


def test_a_fault_of_haemex_hides_no_other_patient(cohort, monkeypatch):
    real = check.check_patient

    def fragile(row, thickness):
        if row["patient"] == "P2":
            raise KeyError("DOE^JANE")
        return real(row, thickness)

    monkeypatch.setattr(check, "check_patient", fragile)
    cohort.rows["P3"]["baseline_ct"] = "nowhere"
    found = cohort.found()
    assert [one[0] for one in found] == ["P2", "P3"]
    assert "KeyError" in found[0][2] and "JANE" not in found[0][2]


# --- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "severity", "problem"),
    [
        (lambda mask: mask * 0, "error", "the mask is empty"),
        (lambda mask: mask[:5], "error", "5 slices"),
        (lambda mask: mask * (1 + np.arange(SLICES, dtype=np.uint8) % 2)[:, None, None], "error", "the values 0, 1, 2"),
        (lambda mask: mask[:, :, ::-1], "warning", "mirrored left to right: it lies on 30 HU, its mirror image on 65"),
        (lambda mask: mask[::-1], "warning", "looks mirrored head to foot"),
        (lambda mask: np.roll(mask, 10, axis=1), "warning", "less dense than blood"),
        (lambda mask: np.roll(mask, (-14, -9), (1, 2)), "error", "lies on air"),
        (lambda mask: np.roll(mask, 3, axis=2), "", ""),  # half beside it
    ],
)  # fmt: skip
def test_masks_against_their_ct(cohort, change, severity, problem):
    cohort.mask("P2", change)
    found = [one for one in cohort.found() if one[1] == "error" or "edge of the image" not in one[2]]
    assert [one[:2] for one in found] == [("P2", severity)] * bool(severity)
    assert not severity or problem in found[0][2]


def disc(value, around, inside_size=6):
    mask = np.zeros((5, 40, 40), np.uint8)
    mask[2, 10 : 10 + inside_size, 17 : 17 + inside_size] = 1
    hu = np.full((5, 40, 40), float(around))
    hu[mask > 0] = value
    return mask, hu


GEOMETRY = {"affine": np.diag([2.0, 2.0, 5.0, 1.0]), "acquired_positions_mm": [0, 5, 10, 15, 20.0]}


@pytest.mark.parametrize(
    ("inside", "around", "words"),
    [
        (60, 30, None),
        (41, 30, None),
        (99, 30, None),
        (45, 40, "brain as dense as its surroundings"),
        (20, 20, "less dense than blood"),
        (150, 30, "denser than blood"),
        (800, 30, "bone"),
        (-900, -900, "air"),
        (60, -900, None),  # nothing to compare with
    ],
)  # fmt: skip
def test_densities_by_hand(inside, around, words):
    mask, hu = disc(inside, around)
    found = _judge_density(mask, True, GEOMETRY, lambda index: hu[index])
    assert [words in one["problem"] for one in found] == [True] * (words is not None)


def test_a_mask_mirrored_front_to_back():
    mask, hu = disc(60, 30)
    (one,) = _judge_density(mask[:, ::-1], True, GEOMETRY, lambda index: hu[index])
    assert "mirrored front to back: it lies on 30 HU, its mirror image on 60 HU" in one["problem"]


def test_a_mask_on_the_even_grid_is_held_against_the_nearest_slice():
    mask, hu = disc(60, 30)
    even = np.zeros((9, 40, 40), np.uint8)
    even[4] = mask[2]
    assert _judge_density(even, False, GEOMETRY, lambda index: hu[index]) == []
    even = even[[4, 1, 2, 3, 0, 5, 6, 7, 8]]
    assert _judge_density(even, False, GEOMETRY, lambda index: hu[index])


def test_second_reader_and_change_of_volume(cohort):
    second = cohort.folder / "P2/second.nii.gz"
    mask, affine = read_volume(cohort.rows["P2"]["baseline_mask"])
    write_volume(second, np.roll(mask, 12, axis=1), affine)
    cohort.rows["P2"]["baseline_mask_rater2"] = str(second)
    y = np.indices(mask.shape)[1]
    cohort.mask("P3", lambda mask: mask * (y == 19).astype(np.uint8), "followup_mask")
    found = cohort.found()
    assert ("P2", "warning", "the second reader's mask and the first one have no voxel in common") in found
    assert any(
        re.fullmatch(r"[\d.]+ mL at baseline, [\d.]+ mL at follow-up", one[2]) for one in found if one[0] == "P3"
    )
    write_volume(second, mask * 0, affine)  # a second reader may see nothing
    assert not [one for one in cohort.found() if one[0] == "P2"]


# --- the cohort, the disk, what is written -------------------------------------------------------------------------


def test_folds_and_classes(cohort):
    found = cohort.found(folds=3)
    assert [one[:2] for one in found] == [("", "error"), ("", "warning")]
    assert "2 patients for 3 folds" in found[0][2] and "validated on one kind alone" in found[1][2]
    cohort.rows["P4"] |= {"followup_mask": "", "followup_ct": "", "followup_volume_ml": "1"}
    assert cohort.found()[0][2] == "the test cohort has 2 patients, 0 of them with expansion"


def test_without_a_training_period_no_training_cohort_is_missed(cohort):
    """All four patients are those of an external evaluation; it wants both outcomes among them, and nothing else."""
    external = {"train": None, "test": ["2012-02-01", "2019-10-31"]}
    assert cohort.found(cohorts=external, folds=5, candidates=0) == []
    late = cohort.found(cohorts={"train": None, "test": ["2030-01-01", "2030-12-31"]}, folds=5)
    assert len(late) == 1 and "the test cohort is empty" in late[0][2]


def test_a_disk_too_small(cohort, monkeypatch):
    monkeypatch.setattr(disk_space, "free_bytes", lambda folder: 1e6)
    (one,) = cohort.problems()
    assert one["severity"] == "error" and "1 MB are free" in one["problem"] and one["file"].endswith("out")
    assert "It does not fit" in (cohort.folder / "out/index.html").read_text()
    (cohort.folder / "out/predict").mkdir()
    monkeypatch.setattr(disk_space, "used_bytes", lambda folder, leave_out: 1e12)  # nearly done
    assert cohort.found() == []


def test_errors_end_the_job_with_one_sentence_that_names_the_page(cohort, capsys):
    cohort.rows["P1"] |= {"baseline_ct": "", "baseline_mask": "", "sex": ""}
    with pytest.raises(InputError, match=r"^2 errors in 1 patient and 1 warning\. Open .*index\.html: it lists"):
        cohort.run()
    said = capsys.readouterr().out
    assert "error, patient P1: `baseline_ct` is missing; name the file" in said
    assert "warning, patient P1: missing: sex" in said and "disk: about" in said


def test_no_identity_and_no_date_on_the_page(cohort, identity):
    cohort.headers("P1", "followup_ct", PatientID="STRANGER", PatientBirthDate="19330303", PatientAge="082Y")
    cohort.headers("P2", "baseline_ct", AcquisitionDate="20150120")
    cohort.headers("P3", "baseline_ct", Modality="MR", SeriesDescription="head jane doe")
    cohort.rows["P4"]["admission_date"] = "17.03.2019"
    problems = cohort.problems()
    assert len(problems) >= 5
    secrets = [
        *identity,
        "19330303",
        "STRANGER",
        "082Y",
        "HOSPP",
        "20150120",
        "2015-01-20",
        "17.03.2019",
        "2015-03-01",
    ]
    for name in ("problems.tsv", "index.html"):
        text = (cohort.folder / "out" / name).read_text()
        text = re.sub(r"<style>.*?</style>", "", text, flags=re.S).replace(str(cohort.folder), "").lower()
        assert not [secret for secret in secrets if secret.lower() in text]


def test_the_page_stands_alone_and_escapes(cohort):
    cohort.rows["P1"]["baseline_ct"] = "<img src=x>"
    cohort.problems()
    page = (cohort.folder / "out/index.html").read_text()
    assert "<img" not in page and "&lt;img src=x&gt;" in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page) and "@import" not in page and "{{" not in page


def test_problems_keep_to_one_line(tmp_path):
    one = check.finding("P1", "two\nlines", "and\ta tab", "f")
    check.write_problems([one], tmp_path / "problems.tsv")
    assert (tmp_path / "problems.tsv").read_text() == (
        "patient\tseverity\tfile\tproblem\taction\nP1\terror\tf\ttwo lines\tand a tab\n"
    )
    check.write_problems([], tmp_path / "none.tsv")
    assert (tmp_path / "none.tsv").read_text() == "patient\tseverity\tfile\tproblem\taction\n"
