import numpy as np
import pytest

from haemex import check
from haemex.errors import InputError
from haemex.nifti import write_volume

HEIGHTS = np.arange(6) * 21.0  # few slices, a whole head
AFFINE = np.array([[-0.5, 0, 0, 20], [0, -2, 0, 30], [0, 0, 21, 0], [0, 0, 0, 1]])


@pytest.fixture
def cohort(tmp_path, write_series):
    """Two patients in whom nothing is wrong: DICOM folders, masks, a full row each."""
    rows = []
    for number, patient in enumerate(("P1", "P2")):
        row = {"patient": patient, **dict.fromkeys(check.CLINICAL, 1)}
        row |= {"age_years": 60, "onset_to_ct_h": 3.0, "ct_to_followup_h": 22.0, "followup_volume_ml": None}
        for time, other in (("baseline", 0), ("followup", 1)):
            pixels = np.full((6, 4, 6), 100 * number + other, np.uint16)
            row[f"{time}_ct"] = str(write_series(tmp_path / patient / time, HEIGHTS, pixels))
            row[f"{time}_mask"] = str(tmp_path / patient / f"{time}.nii.gz")
            mask = np.zeros((6, 4, 6), np.uint8)
            mask[2:4, 1, 1:3] = 1
            write_volume(row[f"{time}_mask"], mask, AFFINE)
        row["baseline_mask_rater2"] = None
        rows.append(row)
    return rows


def found(rows, patients=None):
    problems = check.check_cohort(rows, patients or [row["patient"] for row in rows], 5.0)
    assert all(tuple(problem) == check.COLUMNS for problem in problems)
    return [(one["patient"], one["severity"], one["problem"]) for one in problems]


def test_nothing_is_wrong(cohort):
    assert found(cohort) == []


def test_masks_beside_the_dicom_files_are_fine(cohort, tmp_path):
    inside = tmp_path / "P1" / "baseline" / "mask.nii.gz"
    inside.write_bytes((tmp_path / "P1" / "baseline.nii.gz").read_bytes())
    cohort[0]["baseline_mask"] = str(inside)
    assert found(cohort) == []


@pytest.mark.parametrize(
    ("change", "severity", "problem"),
    [
        ({"followup_volume_ml": 8.5}, "error", "a follow-up mask and a follow-up volume of 8.5 mL are both given"),
        ({"followup_mask": None}, "error", "neither a follow-up mask nor a follow-up volume"),
        ({"followup_ct": None}, "error", "a follow-up mask without its CT"),
        ({"followup_mask": None, "followup_volume_ml": -2.0}, "error", "`followup_volume_ml` is -2, outside 0 to 1000"),
        ({"age_years": 150}, "error", "`age_years` is 150, outside 0 to 120"),
        ({"onset_to_ct_h": -1.0}, "error", "`onset_to_ct_h` is -1, outside 0 to 1000"),
        ({"baseline_ct": None}, "error", "`baseline_ct` is missing"),
        ({"baseline_mask": None}, "error", "`baseline_mask` is missing"),
        ({"baseline_ct": "nowhere"}, "error", "there is no such folder"),
        ({"baseline_mask": "nowhere.nii.gz"}, "error", "`baseline_mask`: there is no such file"),
        ({"baseline_mask_rater2": "nowhere.nrrd"}, "error", "`baseline_mask_rater2`: there is no such file"),
        ({"swirl": None, "sex": None}, "warning", "missing: sex, swirl"),
    ],
)
def test_one_problem(cohort, change, severity, problem):
    cohort[1] |= change
    assert found(cohort) == [("P2", severity, problem)]


def test_followup_volume_instead_of_scan_and_mask(cohort):
    cohort[0] |= {"followup_mask": None, "followup_ct": None, "followup_volume_ml": 12.0}
    assert found(cohort) == []


def test_codes_of_all_patients(cohort):
    problems = found(cohort, ["P1", "P2", "P9", "P9", "p2"])
    assert ("P9", "error", "patient stands in 2 rows of the cohort table") in problems
    assert ("p2", "error", "the codes P2 and p2 differ in case only") in problems
    assert len(problems) == 2


def test_paths_that_are_named_twice(cohort, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "P1" / "baseline")
    cohort[1] |= {"baseline_ct": str(tmp_path / "link"), "followup_mask": cohort[1]["baseline_mask"]}
    problems = found(cohort)
    assert ("P2", "error", "`baseline_ct` is also `baseline_ct` of patient P1") in problems
    assert ("P2", "error", "`followup_mask` is also `baseline_mask`") in problems or (
        "P2", "error", "`baseline_mask` is also `followup_mask`") in problems  # fmt: skip


def test_a_folder_inside_another(cohort, tmp_path):
    cohort[0]["followup_ct"] = str(tmp_path / "P1")
    problems = [problem for _, _, problem in found(cohort)]
    assert any("stands inside `followup_ct` of patient P1" in problem for problem in problems)


def test_headers_and_masks(cohort, tmp_path, write_series):
    for lost in ("002", "003"):
        (tmp_path / "P1" / "followup" / lost).rename(tmp_path / lost)
    write_series(tmp_path / "P1" / "followup", [63.0], np.zeros((1, 4, 6), np.uint16), Modality="MR")
    write_volume(cohort[0]["baseline_mask"], np.full((5, 4, 6), 1, np.uint8), AFFINE)
    labels = np.zeros((6, 4, 6), np.uint8)
    labels[0, 0, 0], labels[1, 0, 0] = 1, 3
    write_volume(cohort[1]["baseline_mask"], labels, AFFINE)
    uneven = write_series(tmp_path / "P2" / "uneven", [0, 21, 40, 63, 84, 105.0], np.zeros((6, 4, 6), np.uint16))
    cohort[1]["followup_ct"] = str(uneven)
    problems = check.check_cohort(cohort, ["P1", "P2"], 5.0)
    texts = [(one["patient"], one["severity"], one["file"], one["problem"]) for one in problems]
    assert [text[:3] for text in texts] == [
        ("P1", "error", cohort[0]["followup_ct"]),
        ("P1", "error", cohort[0]["baseline_mask"]),
        ("P2", "error", cohort[1]["baseline_mask"]),
        ("P2", "warning", cohort[1]["followup_ct"]),
    ]
    assert "only 3 slices" in texts[0][3]
    assert "5 slices, its CT 6 x 4 and 6" in texts[1][3]
    assert "values 0, 1, 3 where" in texts[2][3]
    assert "unevenly spaced" in texts[3][3]


def test_part_of_a_head_is_a_warning(cohort, tmp_path, write_series):
    cohort[0]["baseline_ct"] = str(write_series(tmp_path / "P1" / "part", HEIGHTS / 2, np.zeros((6, 4, 6), np.uint16)))
    assert found(cohort) == [("P1", "warning", "`baseline_ct`: the slices cover only 52 mm")]


def test_pixels_are_not_read(cohort, tmp_path):
    from pydicom import dcmread

    for path in (tmp_path / "P1" / "baseline").iterdir():
        dataset = dcmread(path)
        dataset.PixelData = b"\x00\x00"
        dataset.save_as(path)
    assert found(cohort) == []


def test_problems_as_a_table(cohort, tmp_path):
    cohort[0]["age_years"] = 200
    problems = check.check_cohort(cohort, ["P1", "P2"], 5.0)
    problems[0]["action"] = "two\nlines\tand a tab"
    check.write_problems(problems, tmp_path / "problems.tsv")
    assert (tmp_path / "problems.tsv").read_text() == (
        "patient\tseverity\tfile\tproblem\taction\n"
        "P1\terror\t\t`age_years` is 200, outside 0 to 120\ttwo lines and a tab\n"
    )
    check.write_problems([], tmp_path / "none.tsv")
    assert (tmp_path / "none.tsv").read_text() == "patient\tseverity\tfile\tproblem\taction\n"


def test_errors_end_the_job_and_warnings_do_not(cohort, capsys):
    cohort[0]["swirl"] = None
    check.report_problems(check.check_cohort(cohort, ["P1", "P2"], 5.0))
    assert "warning, patient P1: missing: swirl" in capsys.readouterr().out
    cohort[0]["age_years"], cohort[0]["onset_to_ct_h"] = 200, -1
    with pytest.raises(InputError, match="2 errors in 1 patient"):
        check.report_problems(check.check_cohort(cohort, ["P1", "P2"], 5.0))


def test_no_identity_in_the_table(cohort, tmp_path, write_series, identity):
    for name in ("one", "two"):
        write_series(tmp_path / "P1" / "double" / name, HEIGHTS, np.zeros((6, 4, 6), np.uint16))
    cohort[0]["baseline_ct"] = str(tmp_path / "P1" / "double")
    problems = check.check_cohort(cohort, ["P1", "P2"], 5.0)
    assert "2 series fit equally well" in problems[0]["problem"]
    check.write_problems(problems, tmp_path / "problems.tsv")
    text = (tmp_path / "problems.tsv").read_text().replace(str(tmp_path), "").lower()
    assert not any(word.lower() in text for word in identity)
