"""The picture and the row of one patient: known answers, slow oracles, and a synthetic patient whose HU are known."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from haemex import phantom
from haemex.convert import convert_scan
from haemex.errors import InputError
from haemex.inspection import grow, inspect_patient, measure_tissue, percent, two_class_threshold
from haemex.montage import (
    COLOURS,
    GREY_LEVELS,
    HAEMATOMA,
    MAX_SLICES,
    MM_PER_PIXEL,
    choose_slices,
    draw_montage,
    field_box,
    inside_box,
    outline,
)
from haemex.nifti import read_volume, write_volume
from haemex.phantom_brain import LABELS
from haemex.phantom_cohort import draw_patients
from haemex.provenance import ROOT
from haemex.resample import centre_of_mass_mm, network_affine, resample_scan
from haemex.shapes import fraction_inside
from haemex.skullstrip import skullstrip_scan
from haemex.volume import measure_patient

RED, BLUE, YELLOW = COLOURS[HAEMATOMA - GREY_LEVELS], COLOURS[0], COLOURS[2]
FIELD_MM, MATRIX, SEED = [112.0, 112.0, 160.0], [64, 64, 32], 2021


# --- a synthetic patient, through the stages before ----------------------------------------------------------------


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """Paths of one synthetic patient at the end of `resample`, and what is known of the head."""
    folder = tmp_path_factory.mktemp("patient")
    settings = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    patients = draw_patients({"train": 6, "test": 2, "excluded_each": 0, "matrix": 256}, SEED)
    patient = next(one for one in patients if one["truth"]["trap"] == "tilt")
    name = patient["row"]["patient"]
    phantom.make_patient(patient, folder, 256, SEED)
    home = folder / name
    paths = {"patient": name}
    for timepoint in ("baseline", "followup"):
        nifti, paths[f"{timepoint}_json"] = folder / f"{timepoint}.nii.gz", folder / f"{timepoint}.json"
        convert_scan(home / timepoint, nifti, paths[f"{timepoint}_json"], **settings["convert"])
        _with_warnings(paths[f"{timepoint}_json"])
    paths["ct_path"] = folder / "baseline.nii.gz"
    paths |= {"measure_json": folder / "measure.json", "haematoma_path": folder / "haematoma.nii.gz"}
    measure_patient(
        patient=name,
        baseline_mask=home / "baseline_mask.nii.gz",
        baseline_json=paths["baseline_json"],
        baseline_nifti=paths["ct_path"],
        followup_mask=home / "followup_mask.nii.gz",
        followup_json=paths["followup_json"],
        followup_volume_ml=None,
        rater2_mask=None,
        json_out=paths["measure_json"],
        mask_out=paths["haematoma_path"],
    )
    paths |= {"skullstrip_json": folder / "skullstrip.json", "brain_path": folder / "brain.nii.gz"}
    skullstrip_scan(paths["ct_path"], paths["brain_path"], paths["skullstrip_json"], **settings["skullstrip"])
    _with_warnings(paths["skullstrip_json"])
    paths["resample_json"] = folder / "resample.json"
    resample_scan(
        ct_path=paths["ct_path"],
        brain_path=paths["brain_path"],
        haematoma_path=paths["haematoma_path"],
        ct_out=folder / "grid_ct.nii.gz",
        brain_out=folder / "grid_brain.nii.gz",
        haematoma_out=folder / "grid_haematoma.nii.gz",
        json_out=paths["resample_json"],
        field_of_view_mm=FIELD_MM,
        matrix=MATRIX,
        spline_order=3,
        window_hu=[0.0, 100.0],
    )
    made = phantom.render_scan(patient, "baseline", 256, SEED)
    dicom = next(path for path in sorted((home / "baseline").rglob("*")) if path.is_file())
    return {"paths": paths, "made": made, "scan": made["scan"], "dicom": dicom}


def _with_warnings(path):
    """Give a stage's JSON no warnings: what stages warn of is not tested here."""
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "warnings": []}))


def _inspect(staged, folder, **changes):
    """Inspect the synthetic patient, files or settings changed: the row and the picture's bytes."""
    paths = {**staged["paths"], "field_of_view_mm": FIELD_MM, "matrix": MATRIX, **changes}
    inspect_patient(**paths, png_out=folder / "P.png", json_out=folder / "P.json")
    return json.loads((folder / "P.json").read_text()), (folder / "P.png").read_bytes()


@pytest.fixture(scope="module")
def inspected(staged, tmp_path_factory):
    return _inspect(staged, tmp_path_factory.mktemp("inspect"))


def test_the_row_says_what_the_stages_before_measured(staged, inspected):
    row, _ = inspected
    measured = json.loads(staged["paths"]["measure_json"].read_text())
    assert row["haematoma_ml"] == measured["baseline_ml"] and row["followup_ml"] == measured["followup_ml"]
    assert row["brain_ml"] == json.loads(staged["paths"]["skullstrip_json"].read_text())["brain_ml"]
    assert row["slice_mm"] == pytest.approx(5.0, abs=1e-3), "between planes, although the table moves 5.18 mm"
    assert row["tilt_deg"] == pytest.approx(15.0, abs=0.01)
    assert row["matrix"] == [256, 256] and row["pixel_mm"][0] == pytest.approx(staged["scan"]["pixel_mm"], abs=1e-3)
    assert row["outside_brain"] == 0.0 and row["even"] is True
    inside = json.loads(staged["paths"]["resample_json"].read_text())["haematoma_inside_fraction"]
    assert row["outside_field"] == pytest.approx(1 - inside)
    assert row["lost_ml"] == pytest.approx((1 - inside) * measured["baseline_ml"])


def test_tissue_of_a_synthetic_head_comes_out_as_it_was_made(staged, inspected):
    row, _ = inspected
    made = staged["made"]
    for name, label in (("csf_hu", "ventricle"), ("white_matter_hu", "white")):
        # Well inside the tissue, where no blur reaches; the noise has mean 0.
        inside = ndimage.binary_erosion(made["tissue"] == LABELS[label], np.ones((1, 5, 5)))
        if label == "ventricle":  # the fluid, not the choroid plexus in it
            inside &= ndimage.median_filter(made["hu"], (1, 5, 5)) < 15
        assert row[name] == pytest.approx(np.median(made["hu"][inside]), abs=2.0), name
    assert row["noise_hu"] == pytest.approx(staged["scan"]["noise_hu"], rel=0.25)
    assert 40 < row["haematoma_hu"] < 80
    assert row["warnings"] == [] or row["outside_field"] > 0.01


def test_the_picture_shows_every_slice_with_its_outlines_and_is_small(staged, inspected):
    row, png = inspected
    image = Image.open(io.BytesIO(png))
    assert image.mode == "P" and list(image.size) == row["picture_px"] and len(png) < 600_000
    x, y, width, height = row["key_tile_px"]
    tile = np.asarray(image.convert("RGB"))[y : y + height, x : x + width]
    for colour in (RED, BLUE, YELLOW):
        assert (tile == colour).all(axis=2).any()
    slices = len(read_volume(staged["paths"]["ct_path"])[0])
    across = (image.width + 3) // (width + 3)
    assert image.height > (height + 3) * -(-slices // across)


def test_the_same_bytes_every_time(staged, inspected, tmp_path):
    assert _inspect(staged, tmp_path) == inspected


def test_no_identity_reaches_row_or_picture(staged, inspected):
    import pydicom

    header = pydicom.dcmread(staged["dicom"], stop_before_pixels=True)
    written = (json.dumps(inspected[0]) + repr(inspected[1])).lower()
    names = ("InstitutionName", "PatientBirthDate", "AccessionNumber", "StudyInstanceUID", "SeriesDescription")
    secrets = [str(header.PatientName).split("^")[0], *(str(header[name].value) for name in names if name in header)]
    assert len(secrets) >= 5
    assert not [secret for secret in secrets if len(secret) >= 4 and secret.lower() in written]


def test_a_mask_on_the_wrong_side_is_seen_by_its_density(staged, tmp_path):
    mask, affine = read_volume(staged["paths"]["haematoma_path"])
    write_volume(tmp_path / "mirrored.nii.gz", np.ascontiguousarray(mask[:, :, ::-1]), affine)
    row, _ = _inspect(staged, tmp_path, haematoma_path=tmp_path / "mirrored.nii.gz")
    assert row["haematoma_hu"] < 40
    assert any("wrong side" in warning["problem"] for warning in row["warnings"])


def test_a_mask_that_leaves_the_brain_is_warned_of_as_are_the_stages_before(staged, tmp_path):
    mask, affine = read_volume(staged["paths"]["haematoma_path"])
    mask[-1, :20, :20] = 1
    write_volume(tmp_path / "far.nii.gz", mask, affine)
    odd = {"problem": "`baseline_mask`: the haematoma reaches the last slice of the scan", "action": "check"}
    for name in ("measure", "skullstrip"):
        said = json.loads(Path(staged["paths"][f"{name}_json"]).read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps({**said, "warnings": [odd]}))
    told = {f"{name}_json": tmp_path / f"{name}.json" for name in ("measure", "skullstrip")}
    row, _ = _inspect(staged, tmp_path, haematoma_path=tmp_path / "far.nii.gz", **told)
    assert row["outside_brain"] == pytest.approx(400 / mask.sum())
    problems = " ".join(warning["problem"] for warning in row["warnings"])
    assert "outside the brain mask" in problems and problems.count("the last slice") == 2


def test_a_cut_haematoma_is_told_in_per_cent_and_millilitres(staged, tmp_path):
    facts = json.loads(staged["paths"]["resample_json"].read_text())
    (tmp_path / "cut.json").write_text(json.dumps({**facts, "haematoma_inside_fraction": 0.75}))
    row, _ = _inspect(staged, tmp_path, resample_json=tmp_path / "cut.json")
    assert row["outside_field"] == 0.25 and row["lost_ml"] == row["haematoma_ml"] / 4
    [warning] = [one for one in row["warnings"] if "field of view" in one["problem"]]
    assert f"25.0 % of the haematoma ({row['lost_ml']:.1f} mL)" in warning["problem"]
    assert "config/whole_brain.yaml" in warning["action"]


@pytest.mark.parametrize(("offset_hu", "scale"), [(25, 1.0), (-25, 1.0), (0, 3.0)])
def test_a_scan_that_is_not_in_hu_is_warned_of(staged, tmp_path, offset_hu, scale):
    hu, affine = read_volume(staged["paths"]["ct_path"])
    write_volume(tmp_path / "ct.nii.gz", np.clip(hu * scale + offset_hu, -1024, 3071).astype(np.int16), affine)
    row, _ = _inspect(staged, tmp_path, ct_path=tmp_path / "ct.nii.gz")
    assert any("white matter measures" in warning["problem"] for warning in row["warnings"])


def test_warnings_of_the_stages_before_are_passed_on(staged, tmp_path):
    said = {"problem": "slices unevenly spaced", "action": "check the series"}
    changed = {}
    for name in ("followup_json", "skullstrip_json"):
        facts = json.loads(staged["paths"][name].read_text())
        changed[name] = tmp_path / name
        changed[name].write_text(json.dumps({**facts, "warnings": [said]}))
    row, _ = _inspect(staged, tmp_path, **changed)
    assert row["warnings"][:2] == [{**said, "problem": "follow-up CT: slices unevenly spaced"}, said]


def test_without_follow_up_scan(staged, tmp_path):
    assert _inspect(staged, tmp_path, followup_json=None)[0]["followup_ml"] is not None


def test_a_mask_of_another_grid_is_refused(staged, tmp_path):
    write_volume(tmp_path / "odd.nii.gz", np.ones((3, 4, 5), np.uint8), np.eye(4))
    with pytest.raises(InputError, match="5 x 4 x 3 voxels"):
        _inspect(staged, tmp_path, brain_path=tmp_path / "odd.nii.gz")
    assert not list(tmp_path.glob("P.*"))


def test_the_ventricles_and_white_matter_of_a_real_head(shared, tmp_path):
    """GE HiSpeed: tilted, uneven, chronic infarcts. Read off the pictures: fluid 5 to 8 HU, white matter 20 to 26."""
    import tarfile

    with tarfile.open(shared / "data/head_ge_tilt_uneven.tar.xz") as tar:
        tar.extractall(tmp_path / "dicom", filter="data")
    settings = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    convert_scan(tmp_path / "dicom", tmp_path / "ct.nii.gz", tmp_path / "ct.json", **settings["convert"])
    skullstrip_scan(tmp_path / "ct.nii.gz", tmp_path / "b.nii.gz", tmp_path / "b.json", **settings["skullstrip"])
    (hu, affine), (brain, _) = (read_volume(tmp_path / f"{name}.nii.gz") for name in ("ct", "b"))
    found = measure_tissue(hu, affine, brain > 0, np.zeros(hu.shape, bool))
    assert 3 < found["csf_hu"] < 9 and 20 < found["white_matter_hu"] < 26 and 2 < found["noise_hu"] < 4


# --- tissue --------------------------------------------------------------------------------------------------------


def _simple_head(noise_hu=0.0, ventricle_mm=14.0, white_hu=28.0):
    """An ellipsoid of white matter, HU 28, in grey, HU 36, with two straight ventricles of HU 8."""
    z, y, x = 5.0 * np.arange(-12, 13)[:, None, None], np.arange(-100.0, 100)[:, None], np.arange(-90.0, 90)
    radius = np.sqrt((x / 68) ** 2 + (y / 85) ** 2 + (z / 65) ** 2)
    hu = np.where(radius < 1, white_hu, -1000.0)
    hu[(radius < 1) & (radius > 0.62)] = 36.0
    ventricles = (np.abs(np.abs(x) - 10) < ventricle_mm / 2) & (np.abs(y) < 30) & (np.abs(z) < 16)
    hu[np.broadcast_to(ventricles, hu.shape)] = 8.0
    hu += np.random.default_rng(1).normal(0, noise_hu, hu.shape) if noise_hu else 0
    return hu.astype(np.float32), np.diag([1.0, 1.0, 5.0, 1.0]), radius < 1


def test_tissue_of_a_simple_head_is_exact():
    hu, affine, brain = _simple_head()
    found = measure_tissue(hu, affine, brain, np.zeros_like(brain))
    assert found == {"csf_hu": 8.0, "white_matter_hu": 28.0, "noise_hu": 0.0}


def test_white_noise_of_a_simple_head_is_measured():
    hu, affine, brain = _simple_head(noise_hu=4.0)
    found = measure_tissue(hu, affine, brain, np.zeros_like(brain))
    assert found["csf_hu"] == pytest.approx(8, abs=0.5) and found["white_matter_hu"] == pytest.approx(28, abs=1.0)
    assert found["noise_hu"] == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("turned", [False, True], ids=["upwards", "head first"])
def test_an_offset_moves_both_tissues_and_nothing_else(turned):
    hu, affine, brain = _simple_head(noise_hu=3.0)
    if turned:  # the first slice is the highest
        hu, brain, affine = hu[::-1], brain[::-1], affine @ np.diag([1.0, 1.0, -1.0, 1.0])
    nothing = np.zeros_like(brain)
    one, other = (measure_tissue(hu + np.float32(shift), affine, brain, nothing) for shift in (0, 17))
    assert other["csf_hu"] - one["csf_hu"] == pytest.approx(17, abs=0.01)
    assert other["white_matter_hu"] - one["white_matter_hu"] == pytest.approx(17, abs=0.01)
    assert other["noise_hu"] == pytest.approx(one["noise_hu"], abs=0.01)


def test_slit_ventricles_and_no_brain_are_not_measured():
    hu, affine, brain = _simple_head(ventricle_mm=2.0)
    found = measure_tissue(hu, affine, brain, np.zeros_like(brain))
    assert found["csf_hu"] is None and found["white_matter_hu"] == pytest.approx(28, abs=0.5)
    nothing = measure_tissue(hu, affine, np.zeros_like(brain), np.zeros_like(brain))
    assert nothing == {"csf_hu": None, "white_matter_hu": None, "noise_hu": None}


def test_haematoma_and_its_surroundings_count_for_nothing():
    hu, affine, brain = _simple_head()
    haematoma = np.zeros_like(brain)
    haematoma[10:14, 90:120, 120:140] = True
    hu[haematoma] = 65.0
    hu[9:15, 80:130, 112:148][~haematoma[9:15, 80:130, 112:148]] = 18.0  # oedema
    found = measure_tissue(hu, affine, brain, haematoma)
    assert found["white_matter_hu"] == 28.0 and found["csf_hu"] == 8.0


@given(
    mask=st.lists(st.booleans(), min_size=60, max_size=60),
    reach=st.floats(0, 5),
    step=st.tuples(st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.7, 1.0])),
)
@settings(max_examples=60, deadline=None)
def test_growing_by_a_square_as_a_slow_oracle_does(mask, reach, step):
    mask = np.array(mask).reshape(2, 5, 6)
    expected = np.zeros_like(mask)
    for z, y, x in np.argwhere(mask):
        for row in range(5):
            for column in range(6):
                near = abs(row - y) * step[0] <= reach + 1e-9 and abs(column - x) * step[1] <= reach + 1e-9
                expected[z, row, column] |= near
    np.testing.assert_array_equal(grow(mask, reach, step), expected)


def test_two_classes_are_parted_half_way_as_isodata_does():
    assert two_class_threshold(np.array([1.0, 1, 1, 9, 9])) == 5.0
    assert two_class_threshold(np.array([3.0, 3.0])) == 3.0
    from skimage.filters import threshold_isodata

    rng = np.random.default_rng(3)
    values = np.rint(np.concatenate([rng.normal(28, 2, 4000), rng.normal(36, 2, 3000)])).astype(np.float32)
    own, reference = two_class_threshold(values), threshold_isodata(values.astype(np.uint8), nbins=256)
    assert (values <= own).sum() == (values <= reference).sum()


# --- geometry ------------------------------------------------------------------------------------------------------


def test_the_box_is_where_resample_has_its_grid():
    """On a sheared grid, the share of a mask within the box is the one that resample writes down."""
    affine = np.array([[-0.9, 0, 0, 60], [0, -0.85, 0.1, 70], [0, -0.3, 4.5, -40], [0, 0, 0, 1.0]])
    mask = np.zeros((20, 150, 140), bool)
    mask[5:18, 10:120, 50:130] = True
    grid = network_affine(centre_of_mass_mm(mask, affine) + 20, FIELD_MM, MATRIX)
    low, high = field_box(grid, MATRIX)
    np.testing.assert_allclose(high - low, FIELD_MM)
    inside = inside_box(affine, mask.shape, low, high)
    share = fraction_inside(mask, affine, grid, tuple(MATRIX[::-1]))
    assert 0.1 < share < 0.9
    assert (mask & inside).sum() / mask.sum() == pytest.approx(share)


def test_the_outline_is_the_rim_within_and_not_the_edge_of_the_picture():
    mask = np.zeros((1, 6, 6), bool)
    mask[0, 1:, 1:5] = True
    drawn = outline(mask)[0].astype(int).tolist()
    assert drawn == [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 0],
    ]


@given(count=st.integers(1, 700), place=st.floats(0, 1))
def test_all_slices_are_shown_or_every_nth_with_the_one_that_matters(count, place):
    key = min(int(place * count), count - 1)
    shown = choose_slices(count, key)
    assert key in shown and len(shown) <= MAX_SLICES and shown[-1] < count
    assert shown.step == 1 or count > MAX_SLICES
    assert len(shown) > count / shown.step - 1


# --- the picture ---------------------------------------------------------------------------------------------------


def _tile(png, places):
    x, y, width, height = places["key_tile_px"]
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)[y : y + height, x : x + width]


def _block(shape=(5, 100, 80), spacing=(5.0, 1.0, 2.0)):
    """A block of 40 HU with a brighter corner at the patient's right front; x runs to the right, y to the front."""
    hu = np.full(shape, -1000.0)
    hu[:, 10:90, 10:70] = 40.0
    hu[:, 70:90, 50:70] = 80.0
    return hu, np.diag([spacing[2], spacing[1], spacing[0], 1.0])


def test_the_patients_right_is_on_the_left_and_the_front_above():
    hu, affine = _block()
    tile = _tile(*draw_montage(hu, affine, ["x"])).mean(axis=2)
    rows, columns = tile.shape
    quarter = tile[rows // 10 : rows // 4, columns // 8 : columns // 4]
    others = tile[-rows // 4 : -rows // 10, columns // 8 : columns // 4]
    assert quarter.mean() > 240 and 100 < others.mean() < 150


def test_pixels_that_are_not_square_keep_the_head_in_shape():
    hu, affine = _block(spacing=(5.0, 1.0, 2.0))
    _, _, width, height = draw_montage(hu, affine, ["x"])[1]["key_tile_px"]
    # the block is 60 pixels of 2 mm wide and 80 of 1 mm high, and 3 mm of margin on each side
    assert width == pytest.approx(126 / MM_PER_PIXEL, abs=4) and height == pytest.approx(86 / MM_PER_PIXEL, abs=4)


def test_haematoma_beyond_the_field_of_view_is_filled():
    hu, affine = _block()
    haematoma = np.zeros(hu.shape, bool)
    haematoma[1:4, 30:60, 20:50] = True  # x 40 to 100 mm
    counts = {}
    for name, edge in (("whole", 200.0), ("half", 70.0)):
        png, places = draw_montage(
            hu, affine, ["x"], haematoma=haematoma, field=(np.full(3, -50.0), np.array([edge, 200, 50]))
        )
        counts[name] = (_tile(png, places) == RED).all(axis=2).sum()
    rim = 2 * (30 + 60) / MM_PER_PIXEL
    assert counts["whole"] == pytest.approx(rim, rel=0.1)
    assert counts["half"] > counts["whole"] + 30 * 30 / MM_PER_PIXEL**2 / 3 * 0.7


def test_a_scan_alone_is_drawn_without_masks():
    hu, affine = _block((90, 40, 40))
    png, _ = draw_montage(hu, affine, ["Patient P", "text"])
    image = Image.open(io.BytesIO(png))
    assert max(index for _, index in image.getcolors()) < GREY_LEVELS
    assert draw_montage(hu * 0 - 1000, affine, ["all air"])[0].startswith(b"\x89PNG")


def test_shares_are_never_rounded_to_nothing():
    assert [percent(share) for share in (0.0, 1e-5, 0.0312, 1.0)] == ["0.0 %", "< 0.1 %", "3.1 %", "100.0 %"]
