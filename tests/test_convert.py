import contextlib
import gzip
import itertools
import json
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_folders import (
    COLUMNS,
    HEAD,
    HEIGHTS,
    ROWS,
    compare_places,
    convert,
    scan_geometry,
    several,
    stored,
)

from haemex.convert import convert_scan
from haemex.errors import InputError
from haemex.nifti import write_volume


def test_no_identity_in_the_outputs(tmp_path, write_series, identity):
    folder = several(tmp_path, write_series, one=(HEAD, {}), bone=(HEAD, {"ConvolutionKernel": "H70h"}))
    _, _, description = convert(folder, tmp_path)
    contents = (tmp_path / "scan.json").read_bytes() + gzip.decompress((tmp_path / "scan.nii.gz").read_bytes())
    for word in identity:
        assert word.lower().encode() not in contents.lower()
    assert set(description) == {"acquisition", "geometry", "series", "pixel_digest", "warnings"}


def test_acquisition(tmp_path, write_series):
    _, _, description = convert(write_series(tmp_path / "a", HEIGHTS, stored(6)), tmp_path)
    assert description["acquisition"] == {
        "manufacturer": "SIEMENS",
        "model": "SOMATOM Force",
        "slice_thickness_mm": 5.0,
        "slices": 6,
        "matrix": [6, 4],
        "pixel_spacing_mm": [0.5, 2.0],
        "field_of_view_mm": [3.0, 8.0],
        "window_width": 90.0,
        "window_level": 35.0,
        "kernel": "Hr38f",
        "kvp": 120.0,
    }
    bare = write_series(
        tmp_path / "b", HEIGHTS, stored(6), Manufacturer=None, ManufacturerModelName=None, ConvolutionKernel=None,
        KVP=None, WindowWidth=None, WindowCenter=None, SliceThickness=None, SeriesNumber=None,
    )  # fmt: skip
    acquisition = convert(bare, tmp_path, "bare")[2]["acquisition"]
    absent = ("manufacturer", "model", "kernel", "kvp", "window_width", "window_level", "slice_thickness_mm")
    assert all(acquisition[key] is None for key in absent)


# ---------------------------------------------------------------- NIfTI sources


def head_values():
    values = np.full((6, ROWS, COLUMNS), 30, np.int16)
    values[:, 0], values[:, 3] = -1100, 1200
    return values


def test_nifti_source_keeps_its_sheared_affine(tmp_path):
    affine = np.array([[0.5, 0, 0, -60], [0, 0.48, 0, -70], [0, -0.15, 5, 20], [0, 0, 0, 1]])
    write_volume(tmp_path / "in.nii.gz", head_values(), affine)
    hu, written, description = convert(tmp_path / "in.nii.gz", tmp_path)
    np.testing.assert_allclose(written, affine, atol=1e-6)
    np.testing.assert_array_equal(hu, np.maximum(head_values(), -1024))
    assert description["geometry"]["tilt_deg"] == pytest.approx(np.degrees(np.arctan2(0.15, 0.48)), abs=1e-4)
    assert description["series"]["taken"]["number"] is None
    assert np.diff(description["geometry"]["acquired_positions_mm"]).min() > 0
    left_handed = affine @ np.diag([-1, 1, 1, 1])
    write_volume(tmp_path / "left.nii.gz", head_values(), left_handed)
    other = convert(tmp_path / "left.nii.gz", tmp_path, "left")[2]["geometry"]
    np.testing.assert_allclose(
        np.diff(other["acquired_positions_mm"]), np.diff(description["geometry"]["acquired_positions_mm"])
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda v: v + 1100, "0 to 2300 are not Hounsfield units"),
        (lambda v: np.clip(v, 0, 100), "are not Hounsfield units"),
        (lambda v: np.where(v > 100, 100, v), "are not Hounsfield units"),
        (lambda v: np.where(v > 100, np.nan, v).astype(np.float32), "are not Hounsfield units"),
        (lambda v: v[:2], "no stack of slices"),
    ],
)
def test_nifti_source_that_is_no_ct(tmp_path, change, problem):
    write_volume(tmp_path / "in.nii.gz", change(head_values()), np.diag([0.5, 0.5, 5, 1]))
    with pytest.raises(InputError, match=problem):
        convert(tmp_path / "in.nii.gz", tmp_path)


def test_nifti_source_that_is_not_axial_or_not_there(tmp_path):
    half = np.sqrt(0.5)
    oblique = [[1, 0, 0, 0], [0, half, -half, 0], [0, half, half, 0], [0, 0, 0, 1]]
    write_volume(tmp_path / "in.nii.gz", head_values(), oblique)
    with pytest.raises(InputError, match="axial"):
        convert(tmp_path / "in.nii.gz", tmp_path)
    sagittal_slices = np.array([[0, 0, 5, 0], [0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 1]])
    write_volume(tmp_path / "in.nii.gz", np.pad(head_values(), ((0, 0), (0, 4), (0, 0)), "edge"), sagittal_slices)
    with pytest.raises(InputError, match="axial"):
        convert(tmp_path / "in.nii.gz", tmp_path)
    with pytest.raises(InputError, match="there is no such file"):
        convert(tmp_path / "absent.nii.gz", tmp_path)
    with pytest.raises(InputError, match="neither a DICOM folder nor NIfTI"):
        (tmp_path / "spm.img").write_bytes(b"")
        convert(tmp_path / "spm.img", tmp_path)


def save(path, values, affine, sform=1, qform=1, units="mm", **fields):
    """Write (z, y, x) values with nibabel, as other programs do."""
    image = nibabel.Nifti1Image(np.asarray(values).transpose(), None)
    image.set_sform(affine, sform)
    if qform:
        image.set_qform(affine, qform)
    image.header.set_xyzt_units(units)
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_nifti_axes_in_any_order(tmp_path, order, flips):
    values = np.random.default_rng(0).integers(-1024, 2000, (6, 7, 8)).astype(np.int16)
    affine = np.array([[0.5, 0, 0, -60], [0, 0.5, 0, -70], [0, 0, 5, 20], [0, 0, 0, 1]], float)
    stored_values = values.transpose()[np.ix_(*[np.arange(n)[::f] for n, f in zip((8, 7, 6), flips, strict=True)])]
    ends = [0 if flip > 0 else n - 1 for n, flip in zip((8, 7, 6), flips, strict=True)]
    flipped = affine @ np.array(
        [[flips[i] * (i == j) for j in range(3)] + [ends[i]] for i in range(3)] + [[0, 0, 0, 1]]
    )
    path = save(tmp_path / "in.nii.gz", stored_values.transpose(order).transpose(), flipped[:, [*order, 3]])
    hu, written, description = convert(path, tmp_path)
    assert description["geometry"]["acquired_slices"] == 6
    for index in ((0, 0, 0), (3, 4, 5), (7, 6, 2)):
        where = np.linalg.inv(written) @ affine @ [*index, 1]
        x, y, z = np.rint(where[:3]).astype(int)
        assert hu[z, y, x] == values[index[::-1]]
    assert scan_geometry(path, 5.0) == description["geometry"]


def test_scaled_and_float_nifti_and_one_volume_in_four_dimensions(tmp_path):
    affine = np.diag([0.5, 0.5, 5, 1.0])
    expected = np.maximum(head_values(), -1024)
    for name, values in (
        ("float", head_values().astype(np.float32)),
        ("double", head_values() + 0.3),
        ("four", head_values()[None]),
        ("unsigned", (head_values() + 2000).astype(np.uint16)),
    ):
        fields = {"scl_slope": 1, "scl_inter": -2000} if name == "unsigned" else {}
        path = save(tmp_path / f"{name}.nii.gz", values, affine)
        if fields:  # nibabel sets the scale when it writes
            content = bytearray(gzip.decompress(path.read_bytes()))
            struct.pack_into("<2f", content, 112, 1.0, -2000.0)
            path.write_bytes(gzip.compress(content))
        np.testing.assert_array_equal(convert(path, tmp_path, name)[0], expected)


def test_nan_around_the_head_is_air_and_within_is_refused(tmp_path):
    values = head_values().astype(np.float32)
    values[:, 0] = np.nan
    values[:, 1, 0] = -900
    hu, _, _ = convert(save(tmp_path / "a.nii.gz", values, np.diag([0.5, 0.5, 5, 1.0])), tmp_path)
    assert (hu[:, 0] == -1024).all()
    values = head_values().astype(np.float32)
    values[3, 1, 2] = np.nan
    with pytest.raises(InputError, match="no numbers within the volume"):
        convert(save(tmp_path / "b.nii.gz", values, np.diag([0.5, 0.5, 5, 1.0])), tmp_path)


def test_nifti_that_contradicts_itself(tmp_path):
    affine = np.diag([0.5, 0.5, 5, 1.0])
    path = save(tmp_path / "a.nii.gz", head_values(), affine)
    image = nibabel.load(path)
    image.set_sform(affine @ np.diag([-1, 1, 1, 1]), 1)
    nibabel.save(image, path)
    with pytest.raises(InputError, match="sform and the qform of the file contradict each other by up to 5 mm"):
        convert(path, tmp_path)
    for shift_mm, refused in ((0.8, False), (1.2, True)):
        shifted = affine.copy()
        shifted[0, 3] += shift_mm
        image.set_sform(shifted, 1)
        nibabel.save(image, path)
        with pytest.raises(InputError, match="by up to 1 mm") if refused else contextlib.nullcontext():
            convert(path, tmp_path)
    with pytest.raises(InputError, match=r"voxels of 0\.0005 x .* meter"):
        convert(save(tmp_path / "b.nii.gz", head_values(), affine / 1000, units="meter"), tmp_path)
    with pytest.raises(InputError, match="does not say how the volume lies"):
        convert(save(tmp_path / "c.nii.gz", head_values(), affine, sform=0, qform=0), tmp_path)


@pytest.mark.parametrize(("tilt_deg", "refused"), [(0.3, False), (1.0, True)])
def test_a_sheared_affine_of_dcm2niix_is_wrong_from_half_a_degree_on(tmp_path, tilt_deg, refused):
    affine = np.diag([0.5, 0.5, 5, 1.0])
    affine[1, 2] = 5 * np.tan(np.radians(tilt_deg))
    path = save(tmp_path / "scan.nii", head_values(), affine, qform=0, descrip=b"Time=101500.000")
    with pytest.raises(InputError, match="plain dcm2niix conversion") if refused else contextlib.nullcontext():
        assert convert(path, tmp_path)[2]["geometry"]["tilt_deg"] == pytest.approx(tilt_deg)


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [(70, "<h", 999), (108, "<f", -3.0), (40, "<h", 9)],
    ids=["type unknown", "offset before the header", "nine axes"],
)
def test_nifti_with_a_damaged_header_is_refused(tmp_path, offset, form, value):
    path = save(tmp_path / "a.nii", head_values(), np.diag([0.5, 0.5, 5, 1.0]))
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, offset, value)
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable NIfTI volume"):
        scan_geometry(path, 5.0)


def test_nifti_in_a_damaged_archive_is_refused(tmp_path):
    path = save(tmp_path / "a.nii.gz", head_values(), np.diag([0.5, 0.5, 5, 1.0]))
    content = path.read_bytes()
    path.write_bytes(content[:30] + b"\xff" * 30 + content[60:])
    with pytest.raises(InputError, match="not a readable NIfTI volume"):
        scan_geometry(path, 5.0)


def test_nifti_with_odd_but_harmless_fields_is_read(tmp_path):
    affine = np.diag([0.5, 0.5, 5, 1.0])
    expected = scan_geometry(save(tmp_path / "a.nii.gz", head_values(), affine), 5.0)
    # A quaternion longer than 1 by rounding, which nibabel refuses to read; the sform is sound.
    longer = save(tmp_path / "b.nii.gz", head_values(), affine, quatern_b=0.0, quatern_c=0.0, quatern_d=1.0 + 1e-5)
    units = save(tmp_path / "c.nii.gz", head_values(), affine, xyzt_units=2 + 88)
    (tmp_path / "D.NII.GZ").write_bytes((tmp_path / "a.nii.gz").read_bytes())
    for path in (longer, units, tmp_path / "D.NII.GZ"):
        assert scan_geometry(path, 5.0) == expected


@pytest.mark.parametrize(("sform", "qform"), [(4, 0), (3, 1), (1, 4)])
def test_nifti_in_a_standard_space_is_refused(tmp_path, sform, qform):
    path = save(tmp_path / "a.nii.gz", head_values(), np.diag([0.5, 0.5, 5, 1.0]), sform=sform, qform=qform)
    with pytest.raises(InputError, match="brought to a standard space"):
        scan_geometry(path, 5.0)


def test_pictures_are_no_scan(tmp_path):
    colours = np.zeros((6, 7, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(InputError, match="in colour"):
        convert(save(tmp_path / "a.nii.gz", colours, np.diag([0.5, 0.5, 5, 1.0])), tmp_path)


def test_a_pin_on_a_nifti_file_is_an_error(tmp_path):
    path = save(tmp_path / "a.nii.gz", head_values(), np.diag([0.5, 0.5, 5, 1.0]))
    for call in (scan_geometry, lambda *a: convert_scan(a[0], tmp_path / "o.nii.gz", tmp_path / "o.json", *a[1:])):
        with pytest.raises(
            InputError, match="series 3 is pinned in the cohort table, and a NIfTI file holds no series"
        ):
            call(path, 5.0, "3")


# ---------------------------------------------------------------- real series


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """The three real series, unpacked for the time of the tests."""
    folder = tmp_path_factory.mktemp("real")
    for path in sorted((shared / "data").glob("*.tar.*")):
        with tarfile.open(path) as archive:
            archive.extractall(folder / path.name.split(".")[0], filter="data")
    return folder


def test_real_tilted_uneven_head(real, tmp_path):
    folder = real / "head_ge_tilt_uneven"
    hu, affine, description = convert(folder, tmp_path)
    geometry = description["geometry"]
    assert (geometry["acquired_slices"], geometry["even"]) == (28, False)
    assert geometry["tilt_deg"] == pytest.approx(18.5, abs=1e-4)
    files = compare_places(folder / "GE", affine, geometry, 1e-3)
    cos = np.cos(np.radians(18.5))
    steps = np.diff(geometry["acquired_positions_mm"]) / cos
    np.testing.assert_allclose(steps, [4.22] * 13 + [1.14] + [7.38] * 13, atol=1e-4)
    assert geometry["shape_xyz"] == [512, 512, 37]
    assert affine[:3, 2] == pytest.approx([0, 0, (157.7760586 - 5.8360586) / 36], abs=1e-5)
    assert geometry["voxel_volume_ml"] == pytest.approx(abs(np.linalg.det(affine)) / 1000, rel=1e-6)
    assert hu.min() == -1024
    first, last = (
        np.maximum(one.pixel_array, -1024) for one in map(pydicom.dcmread, (files[0].filename, files[-1].filename))
    )
    np.testing.assert_array_equal(hu[0], first)
    np.testing.assert_array_equal(hu[-1], last)


def test_real_study_folder_against_simpleitk(real, tmp_path):
    import SimpleITK

    folder = real / "phantom_philips_study"
    hu, affine, description = convert(folder, tmp_path)
    assert description["series"]["taken"] == {
        **{"label": "201", "number": 201, "files": 28},
        **{"slice_thickness_mm": 5.0, "kernel": "UB"},
    }
    assert [(one["number"], one["files"]) for one in description["series"]["others"]] == [(100, 1), (401, 6)]
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(next(folder.rglob("S2010")))))
    image = reader.Execute()
    np.testing.assert_array_equal(hu, np.maximum(SimpleITK.GetArrayFromImage(image), -1024))
    for index in ((0, 0, 0), (511, 0, 0), (0, 511, 0), (0, 0, 27), (100, 200, 13)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(affine[:3] @ [*index, 1], [-x, -y, z], atol=1e-3)
    compare_places(next(folder.rglob("S2010")), affine, description["geometry"], 1e-4)


def test_real_series_whose_tilt_tag_has_the_other_sign(real, tmp_path):
    folder = real / "phantom_philips_tilt"
    _, affine, description = convert(folder, tmp_path)
    geometry = description["geometry"]
    assert (geometry["acquired_slices"], geometry["even"]) == (54, True)
    assert geometry["tilt_deg"] == pytest.approx(18.5, abs=1e-4)
    np.testing.assert_allclose(np.diff(geometry["acquired_positions_mm"]), 2.371, atol=1e-3)
    where = next(path.parent for path in folder.rglob("I10"))
    compare_places(where, affine, geometry, 1e-3)


def test_an_empty_cell_is_not_the_folder_one_stands_in(tmp_path, write_series, monkeypatch):
    write_series(tmp_path / "scan", origins=np.arange(24) * 5.0, stored=np.zeros((24, 8, 8), np.int16))
    convert_scan(tmp_path / "scan", tmp_path / "a.nii.gz", tmp_path / "a.json", 5.0)
    monkeypatch.chdir(tmp_path / "scan")
    with pytest.raises(InputError, match="names no scan"):
        convert_scan("", tmp_path / "a.nii.gz", tmp_path / "a.json", 5.0)


def test_plain_dcm2niix_conversion_of_a_tilted_scan_is_refused(real, tmp_path):
    command = [Path(sys.executable).parent / "dcm2niix", "-o", tmp_path, "-f", "scan", real / "phantom_philips_tilt"]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(InputError, match="plain dcm2niix conversion") as caught:
        convert(tmp_path / "scan.nii", tmp_path)
    assert "_Tilt" in caught.value.action
    corrected = next(tmp_path.glob("scan_Tilt*.nii"))
    assert scan_geometry(corrected, 5.0)["tilt_deg"] < 0.1
    corrected.unlink()  # without the other file the shear gives it away
    with pytest.raises(InputError, match="plain dcm2niix conversion"):
        convert(tmp_path / "scan.nii", tmp_path)


def test_warnings_of_the_real_series(real, tmp_path):
    expected = {
        "head_ge_tilt_uneven": ["slices unevenly spaced", "slices overlap where two parts"],
        "phantom_philips_study": [],
        "phantom_philips_tilt": [],
    }
    for name, starts in expected.items():
        problems = [one["problem"] for one in convert(real / name, tmp_path, name)[2]["warnings"]]
        assert len(problems) == len(starts), problems
        assert all(map(str.startswith, problems, starts))


def test_no_identity_in_what_is_printed(tmp_path, write_series, identity, capfd):
    folder = several(tmp_path, write_series, one=(HEAD, {"PatientAge": "JANE"}), two=(HEAD, {"PatientSex": "DOE^JANE"}))
    (folder / "one" / "005").write_bytes((folder / "one" / "005").read_bytes()[:900])
    for wanted in (None, "1", "2", "9"):
        try:
            convert_scan(folder, tmp_path / "o.nii.gz", tmp_path / "o.json", 5.0, series=wanted)
        except InputError as error:
            print(error.problem, error.action)
    printed = "".join(capfd.readouterr())
    written = (tmp_path / "o.json").read_text()
    assert json.loads(written)["series"]["taken"]["label"] == "2"
    for word in identity:
        assert word.lower() not in (printed + written).lower()
