import gzip
import json
import shutil
import tarfile

import gdcm
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from haemex.convert import convert_scan
from haemex.dicom import read_hu
from haemex.errors import InputError
from haemex.geometry import even_mask, stack_geometry
from haemex.nifti import read_volume, write_volume
from haemex.series import find_series, is_bone_kernel

ROWS, COLUMNS = 4, 6
HEIGHTS = [10.0, 15.0, 20.0, 25.0, 30.0, 35.0]


def stored(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2500, (count, ROWS, COLUMNS)).astype(np.uint16)


def convert(source, tmp_path, name="scan", thickness=5.0):
    """Convert and read back: HU (z, y, x), affine, JSON."""
    convert_scan(source, tmp_path / f"{name}.nii.gz", tmp_path / f"{name}.json", thickness)
    return *read_volume(tmp_path / f"{name}.nii.gz"), json.loads((tmp_path / f"{name}.json").read_text())


def place(dataset, column, row):
    """Where a pixel lies by the equation of DICOM PS3.3 C.7.6.2.1.1, turned to RAS, mm."""
    origin, orientation = map(np.array, (dataset.ImagePositionPatient, dataset.ImageOrientationPatient))
    between_rows, between_columns = dataset.PixelSpacing
    lps = origin + orientation[:3] * between_columns * column + orientation[3:] * between_rows * row
    return lps.astype(float) * [-1, -1, 1]


def compare_places(folder, affine, geometry, tolerance_mm):
    """Compare the affine with every slice's own position, at three of its corners."""
    files = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.iterdir() if "DIR" not in path.name]
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    files.sort(key=lambda one: place(one, 0, 0) @ normal)
    positions = np.array(geometry["acquired_positions_mm"])
    indices = (positions - positions[0]) / (affine[:3, 2] @ normal)
    assert len(files) == len(positions)
    for dataset, position, z in zip(files, positions, indices, strict=True):
        assert position == pytest.approx(place(dataset, 0, 0) @ normal, abs=tolerance_mm)
        for x, y in ((0, 0), (dataset.Columns - 1, 0), (0, dataset.Rows - 1)):
            np.testing.assert_allclose(affine[:3] @ [x, y, z, 1], place(dataset, x, y), atol=tolerance_mm)
    return files


# ---------------------------------------------------------------- geometry


def test_affine_by_hand_with_pixels_that_are_not_square(tmp_path, write_series):
    pixels = stored(6)
    hu, affine, description = convert(write_series(tmp_path / "a", HEIGHTS, pixels), tmp_path)
    np.testing.assert_array_equal(affine, [[-0.5, 0, 0, 20], [0, -2, 0, 30], [0, 0, 5, 10], [0, 0, 0, 1]])
    np.testing.assert_array_equal(hu, pixels.astype(int) - 1024)
    assert hu.dtype == np.int16
    geometry = description["geometry"]
    assert geometry["shape_xyz"] == [COLUMNS, ROWS, 6]
    assert geometry["acquired_slices"] == 6
    assert geometry["even"] is True
    assert geometry["tilt_deg"] == 0
    assert geometry["area_mm2"] == 1.0
    assert geometry["voxel_volume_ml"] == pytest.approx(0.005, rel=1e-12)
    assert geometry["acquired_positions_mm"] == HEIGHTS
    assert geometry["slice_extent_mm"] == [5.0] * 6


@pytest.mark.parametrize("tilt", [20.0, -20.0])
def test_tilted_gantry_shears_the_affine(tmp_path, write_series, tilt):
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    folder = write_series(tmp_path / "a", HEIGHTS, stored(6), orientation=(1, 0, 0, 0, cos, -sin))
    _, affine, description = convert(folder, tmp_path)
    expected = [[-0.5, 0, 0, 20], [0, -2 * cos, 0, 30], [0, -2 * sin, 5, 10], [0, 0, 0, 1]]
    np.testing.assert_allclose(affine, expected, atol=1e-6)
    assert description["geometry"]["tilt_deg"] == pytest.approx(20.0, abs=1e-6)
    assert description["geometry"]["voxel_volume_ml"] == pytest.approx(0.5 * 2 * 5 * cos / 1000, rel=1e-9)
    assert description["geometry"]["slice_extent_mm"] == pytest.approx([5 * cos] * 6)
    compare_places(folder, affine, description["geometry"], 1e-4)


def test_head_turned_without_gantry_tilt_has_no_shear(tmp_path, write_series):
    # A reconstruction turned by 15 degrees about x: the slices are stacked along their own normal.
    cos, sin = np.cos(np.radians(15)), np.sin(np.radians(15))
    origins = [(0, -sin * h, cos * h) for h in HEIGHTS]
    _, affine, description = convert(
        write_series(tmp_path / "a", origins, stored(6), orientation=(1, 0, 0, 0, cos, sin)), tmp_path
    )
    assert description["geometry"]["tilt_deg"] == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(affine[:3, 2], [0, 5 * sin, 5 * cos], atol=1e-5)
    compare_places(tmp_path / "a", affine, description["geometry"], 1e-4)


def test_prone_patient_and_flipped_rows(tmp_path, write_series):
    for name, orientation in (("prone", (-1, 0, 0, 0, -1, 0)), ("flipped", (1, 0, 0, 0, -1, 0))):
        folder = write_series(tmp_path / name, HEIGHTS, stored(6), orientation=orientation)
        _, affine, description = convert(folder, tmp_path, name)
        compare_places(folder, affine, description["geometry"], 1e-5)
        assert np.linalg.det(affine) > 0


def test_order_and_names_of_files_do_not_matter(tmp_path, write_series):
    pixels = stored(6)
    first = convert(write_series(tmp_path / "a", HEIGHTS, pixels), tmp_path, "first")
    order = [3, 0, 5, 1, 4, 2]
    shuffled = write_series(tmp_path / "b", [HEIGHTS[i] for i in order], pixels[order])
    second = convert(write_series(tmp_path / "c", HEIGHTS[::-1], pixels[::-1]), tmp_path, "second")
    third = convert(shuffled, tmp_path, "third")
    for other in (second, third):
        np.testing.assert_array_equal(other[0], first[0])
        assert other[2] == first[2]
    files = [(tmp_path / f"{name}.nii.gz").read_bytes() for name in ("first", "second", "third")]
    assert files[0] == files[1] == files[2]


def test_same_input_gives_the_same_bytes_and_no_rest_behind(tmp_path, write_series):
    folder = write_series(tmp_path / "a", HEIGHTS, stored(6))
    (tmp_path / "out").mkdir()
    contents = []
    for _ in range(2):
        convert(folder, tmp_path / "out")
        contents.append([path.read_bytes() for path in sorted((tmp_path / "out").iterdir())])
        assert len(contents[-1]) == 2
    assert contents[0] == contents[1]


def test_nothing_is_written_when_the_last_slice_is_bad(tmp_path, write_series):
    def cut(index, dataset):
        if index == 5:
            dataset.PixelData = dataset.PixelData[:-10]

    folder = write_series(tmp_path / "a", HEIGHTS, stored(6), edit=cut)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="cut off"):
        convert(folder, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_slightly_uneven_slices_stay_as_they_are(tmp_path, write_series):
    heights = [0.0, 5.03, 10.0, 15.0, 19.97, 25.0]  # within 1 % of 5 mm
    _, affine, description = convert(write_series(tmp_path / "a", heights, stored(6)), tmp_path)
    assert description["geometry"]["even"] is True
    assert affine[2, 2] == 5.0
    heights[1] = 5.1  # 2 %
    description = convert(write_series(tmp_path / "b", heights, stored(6)), tmp_path)[2]
    assert description["geometry"]["even"] is False


def test_uneven_slices_follow_the_positions(tmp_path, write_series):
    # Steps 4, 4, 4, 1, 7, 7, 7 mm, tilted: HU grow by 10 per mm of table, which linear interpolation keeps exactly.
    heights = np.array([0, 4, 8, 12, 13, 20, 27, 34.0])
    thickness = [4, 4, 4, 4, 7, 7, 7, 7]
    cos, sin = np.cos(np.radians(18.5)), np.sin(np.radians(18.5))
    pixels = np.broadcast_to((heights * 10).astype(np.uint16)[:, None, None] + 1024, (8, ROWS, COLUMNS))

    def set_thickness(index, dataset):
        dataset.SliceThickness = thickness[index]

    folder = write_series(tmp_path / "a", heights, pixels, orientation=(1, 0, 0, 0, cos, -sin), edit=set_thickness)
    hu, affine, description = convert(folder, tmp_path)
    geometry = description["geometry"]
    assert geometry["even"] is False
    # Median step 4 mm; 34 / 4 = 8.5 rounds to 8 steps (to even), 4.25 mm each.
    assert geometry["shape_xyz"] == [COLUMNS, ROWS, 9]
    np.testing.assert_allclose(affine[:3, 2], [0, 0, 4.25], atol=1e-6)
    np.testing.assert_allclose(hu[:, 0, 0], 42.5 * np.arange(9), atol=0.5)
    assert geometry["acquired_slices"] == 8
    extents = np.array([4, 4, 4, 2.5, 4, 7, 7, 7]) * cos
    np.testing.assert_allclose(geometry["slice_extent_mm"], extents, atol=1e-9)
    compare_places(folder, affine, geometry, 1e-4)


@pytest.mark.parametrize("lost", [[2], [1, 2], [1, 4]])
def test_missing_slices_are_named(tmp_path, write_series, lost):
    heights = [h for i, h in enumerate(np.arange(12) * 5.0) if i not in lost]
    folder = write_series(tmp_path / "a", heights, stored(len(heights)))
    with pytest.raises(InputError, match="slices are missing") as caught:
        convert(folder, tmp_path)
    assert f"between slices {lost[0]} and {lost[0] + 1}, " in str(caught.value)
    assert "where 5.00 mm are usual" in str(caught.value)


def test_missing_slice_in_the_thicker_part_of_a_series(tmp_path, write_series):
    heights = [0, 4, 8, 12, 16, 20, 27, 34, 48, 55, 62.0]

    def set_thickness(index, dataset):
        dataset.SliceThickness = 4 if index < 5 else 7

    folder = write_series(tmp_path / "a", heights, stored(11), edit=set_thickness)
    with pytest.raises(InputError, match=r"between slices 8 and 9, 14\.00 mm apart where 7\.00 mm"):
        convert(folder, tmp_path)


def test_two_spacings_under_one_thickness_are_no_gap(tmp_path, write_series):
    heights = np.concatenate([np.arange(8) * 5.0, 35 + np.arange(1, 5) * 10.0])
    _, _, description = convert(write_series(tmp_path / "a", heights, stored(12)), tmp_path)
    assert description["geometry"]["even"] is False


def test_slices_beside_the_line_are_refused(tmp_path, write_series):
    origins = [(-20, -30, h) for h in HEIGHTS]
    origins[3] = (-20, -28, HEIGHTS[3])
    with pytest.raises(InputError, match=r"slice 4 lies 2\.00 mm beside"):
        convert(write_series(tmp_path / "a", origins, stored(6)), tmp_path)


def test_a_copied_file_is_dropped_and_another_image_at_its_place_refused(tmp_path, write_series):
    folder = write_series(tmp_path / "a", HEIGHTS, stored(6))
    alone = convert(folder, tmp_path, "alone")
    shutil.copy(folder / "002", folder / "copy of 002")
    copied = convert(folder, tmp_path, "copied")
    np.testing.assert_array_equal(copied[0], alone[0])
    assert copied[2]["geometry"] == alone[2]["geometry"]
    assert copied[2]["pixel_digest"] == alone[2]["pixel_digest"]
    other = pydicom.dcmread(folder / "002")
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(folder / "copy of 002")
    with pytest.raises(InputError, match="position of slice 3 shows something else"):
        convert(folder, tmp_path, "other")


def change(keyword, value, at=3):
    def edit(index, dataset):
        if index == at:
            setattr(dataset, keyword, value)

    return edit


@pytest.mark.parametrize(
    ("keyword", "value", "problem"),
    [
        ("PixelSpacing", [2.1, 0.5], "pixel size 0.5 x 2.1 mm where other slices of the series have 0.5 x 2 mm"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 0.996, 0.0894], "orientation differs"),
        ("ImageOrientationPatient", [1, 0, 0, 0.5, 0.9, 0], "perpendicular"),
        ("PixelSpacing", None, "no matrix or no pixel size"),
        ("RescaleSlope", None, "unit of the pixels is unknown"),
        ("ImagePositionPatient", None, "1 of 6 images of the series have no ImagePositionPatient"),
        ("StudyInstanceUID", "1.2.3", "2 studies"),
        ("PatientID", "someone else", "2 patients"),
    ],
)
def test_a_slice_that_does_not_belong(tmp_path, write_series, keyword, value, problem):
    folder = write_series(tmp_path / "a", HEIGHTS, stored(6), edit=change(keyword, value))
    with pytest.raises(InputError, match=problem):
        convert(folder, tmp_path)


def test_a_slice_of_another_matrix(tmp_path, write_series):
    def edit(index, dataset):
        if index == 1:
            dataset.Rows, dataset.Columns = 8, 6
            dataset.PixelData = bytes(8 * 6 * 2)

    folder = write_series(tmp_path / "a", HEIGHTS, stored(6), edit=edit)
    with pytest.raises(InputError, match="matrix 6 x 8 where other slices of the series have 6 x 4"):
        convert(folder, tmp_path)


@given(
    steps=st.lists(st.floats(1, 9), min_size=4, max_size=12),
    tilt=st.floats(-30, 30),
    turn=st.floats(-180, 180),
)
def test_geometry_holds_for_any_stack(steps, tilt, turn):
    tilt, turn = np.radians([tilt, turn])
    across = 0.5 * np.array([np.cos(turn), np.sin(turn), 0])
    down = 0.4 * np.array([-np.sin(turn) * np.cos(tilt), np.cos(turn) * np.cos(tilt), np.sin(tilt)])
    heights = np.concatenate([[0], np.cumsum(steps)])
    origins = np.array([3.0, -5.0, 7.0]) + np.outer(heights, [0, 0, 1])
    geometry = stack_geometry(origins, across, down, 10, 12, "x")
    affine = np.array(geometry["affine"])
    count = geometry["shape_xyz"][2]
    np.testing.assert_allclose(affine[:3] @ [0, 0, 0, 1], origins[0])
    np.testing.assert_allclose(affine[:3] @ [0, 0, count - 1, 1], origins[-1], atol=1e-9)
    assert geometry["tilt_deg"] == pytest.approx(abs(np.degrees(tilt)), abs=1e-5)
    assert geometry["voxel_volume_ml"] * 1000 == pytest.approx(0.2 * np.cos(tilt) * heights[-1] / (count - 1))
    assert sum(geometry["slice_extent_mm"]) == pytest.approx(
        np.cos(tilt) * (heights[-1] + steps[0] / 2 + steps[-1] / 2)
    )


# ---------------------------------------------------------------- even grid


def test_even_mask_by_hand():
    geometry = stack_geometry(
        np.outer([0, 2, 4, 10.0], [0, 0, 1]), np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), 1, 1, "x"
    )
    assert geometry["shape_xyz"] == [1, 1, 6]  # every 2 mm
    mask = np.array([0, 0, 1, 0]).reshape(4, 1, 1)
    # At 6 mm two thirds of the mask are left, at 8 mm one third.
    assert even_mask(mask, geometry).ravel().tolist() == [0, 0, 1, 1, 0, 0]
    assert even_mask(np.ones((4, 1, 1)), geometry).all()
    assert not even_mask(np.zeros((4, 1, 1)), geometry).any()


def test_even_mask_keeps_a_slice_that_falls_between():
    geometry = {"even": False, "acquired_positions_mm": [0, 4, 8, 9, 10, 14, 18.0], "shape_xyz": [1, 1, 5]}
    mask = np.array([0, 0, 0, 1, 0, 0, 0]).reshape(7, 1, 1)
    assert even_mask(mask, geometry).ravel().tolist() == [0, 0, 1, 0, 0]
    geometry["acquired_positions_mm"] = [0, 4, 8, 8.3, 9.3, 14, 18.0]  # even slices at 0, 4.5, 9, 13.5, 18
    assert even_mask(mask, geometry).ravel().tolist() == [0, 0, 1, 0, 0]


def test_even_mask_of_even_slices_is_the_mask():
    geometry = {"even": True, "acquired_positions_mm": [0, 5.0, 10.0], "shape_xyz": [1, 1, 3]}
    assert even_mask(np.array([1, 0, 1]).reshape(3, 1, 1), geometry).ravel().tolist() == [1, 0, 1]


# ---------------------------------------------------------------- pixels


def test_rescale_and_padding(tmp_path, write_series):
    pixels = np.full((6, ROWS, COLUMNS), 600, np.int16)
    pixels[:, 0, 0] = -2000
    pixels[:, 1, 1] = 601
    folder = write_series(
        tmp_path / "a", HEIGHTS, pixels, RescaleSlope="0.5", RescaleIntercept="-290.25", PixelPaddingValue=-2000
    )
    hu, _, _ = convert(folder, tmp_path)
    assert hu[0, 0, 0] == -1024
    assert hu[0, 1, 0] == 10  # 600 / 2 - 290.25 = 9.75
    assert hu[0, 1, 1] == 10  # 10.25
    assert np.unique(hu).tolist() == [-1024, 10]


def test_rescale_of_every_slice_counts(tmp_path, write_series):
    pixels = np.full((6, ROWS, COLUMNS), 100, np.uint16)
    folder = write_series(tmp_path / "a", HEIGHTS, pixels, edit=lambda i, d: setattr(d, "RescaleIntercept", -10 * i))
    hu, _, _ = convert(folder, tmp_path)
    assert hu[:, 0, 0].tolist() == [100, 90, 80, 70, 60, 50]


def test_values_below_air_are_padding(tmp_path, write_series):
    pixels = np.full((6, ROWS, COLUMNS), -1500, np.int16)
    pixels[:, 2] = -1024
    pixels[:, 3] = -1023
    hu, _, _ = convert(write_series(tmp_path / "a", HEIGHTS, pixels, RescaleIntercept=0), tmp_path)
    assert hu[0, :, 0].tolist() == [-1024, -1024, -1024, -1023]


def test_padding_tag_of_the_wrong_sign(tmp_path, write_series):
    pixels = np.full((6, ROWS, COLUMNS), -900, np.int16)
    pixels[:, 0, 0] = 30000
    folder = write_series(tmp_path / "a", HEIGHTS, pixels, RescaleIntercept=0)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.add_new("PixelPaddingValue", "US", 65536 - 900)
        dataset.save_as(path)
    hu, _, _ = convert(folder, tmp_path)
    assert hu[0, 1, 1] == -1024
    assert hu[0, 0, 0] == 30000


def test_padding_value_within_tissue_is_believed_only_in_a_corner(tmp_path, write_series):
    pixels = np.full((6, ROWS, COLUMNS), 40, np.int16)
    pixels[:, 1, 2] = 0
    careless = write_series(tmp_path / "a", HEIGHTS, pixels, RescaleIntercept=0, PixelPaddingValue=0)
    assert convert(careless, tmp_path, "a")[0][0, 1, 2] == 0
    pixels[:, 0, 0] = 0
    true = write_series(tmp_path / "b", HEIGHTS, pixels, RescaleIntercept=0, PixelPaddingValue=0)
    assert convert(true, tmp_path, "b")[0][0, 1, 2] == -1024


def test_jpeg_lossless_gives_the_same_pixels(tmp_path, write_series):
    pixels = np.random.default_rng(1).integers(0, 4000, (6, 32, 32)).astype(np.uint16)
    plain = convert(write_series(tmp_path / "a", HEIGHTS, pixels), tmp_path, "plain")
    for syntax in (gdcm.TransferSyntax.JPEGLosslessProcess14_1, gdcm.TransferSyntax.JPEG2000Lossless):
        folder = tmp_path / f"syntax{syntax}"
        folder.mkdir()
        for path in (tmp_path / "a").iterdir():
            reader = gdcm.ImageReader()
            reader.SetFileName(str(path))
            assert reader.Read()
            coder = gdcm.ImageChangeTransferSyntax()
            coder.SetTransferSyntax(gdcm.TransferSyntax(syntax))
            coder.SetInput(reader.GetImage())
            assert coder.Change()
            writer = gdcm.ImageWriter()
            writer.SetFileName(str(folder / path.name))
            writer.SetFile(reader.GetFile())
            writer.SetImage(coder.GetOutput())
            assert writer.Write()
        assert pydicom.dcmread(folder / "000").file_meta.TransferSyntaxUID.is_compressed
        packed = convert(folder, tmp_path, "packed")
        np.testing.assert_array_equal(packed[0], plain[0])
        assert packed[2]["pixel_digest"] == plain[2]["pixel_digest"]


def test_sign_of_a_jpeg_2000_stream_that_contradicts_its_header():
    header = pydicom.dcmread(get_testdata_file("J2K_pixelrep_mismatch.dcm"), stop_before_pixels=True)
    hu = read_hu(header)
    assert (hu.min(), hu.max()) == (-1024, 1896)


def test_truncated_files(tmp_path, write_series):
    folder = write_series(tmp_path / "a", HEIGHTS, stored(6))
    whole = (folder / "004").read_bytes()
    for keep, problem in (
        (-20, "cut off"),
        (-60, "no pixels|cut off"),
        (300, "breaks off"),
        (134, "breaks off|cannot be read"),
    ):
        (folder / "004").write_bytes(whole[:keep])
        with pytest.raises(InputError, match=problem) as caught:
            convert(folder, tmp_path)
        assert caught.value.file.endswith("004")


def test_file_without_preamble_is_read(tmp_path, write_series):
    folder = write_series(tmp_path / "a", HEIGHTS, stored(6))
    whole = convert(folder, tmp_path, "whole")
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.file_meta
        dataset.preamble = None
        pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=True)
    assert (folder / "000").read_bytes()[128:132] != b"DICM"
    bare = convert(folder, tmp_path, "bare")
    np.testing.assert_array_equal(bare[0], whole[0])


# ---------------------------------------------------------------- selection

HEAD = np.arange(0, 110, 5.0)  # 22 slices, 105 mm


def several(tmp_path, write_series, **kinds):
    """Write series side by side, from tags and heights; return the folder."""
    for number, (name, (heights, tags)) in enumerate(kinds.items(), start=1):
        write_series(tmp_path / "study" / name, heights, stored(len(heights)), SeriesNumber=number, **tags)
    return tmp_path / "study"


def test_the_right_series_is_taken(tmp_path, write_series):
    thin = np.arange(0, 110, 2.5)
    axial = ("ORIGINAL", "PRIMARY", "AXIAL")
    folder = several(
        tmp_path,
        write_series,
        scout=(
            [0.0],
            {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        ),
        bone=(HEAD, {"ConvolutionKernel": "Hr64f"}),
        thin=(thin, {"SliceThickness": 2.5}),
        soft=(HEAD, {"ImageType": [*axial, "HELIX"], "ConvolutionKernel": ["Hr38f", "3"]}),
        reformat=(HEAD, {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]}),
        coronal=(HEAD, {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}),
        angiography=(HEAD, {"ContrastBolusAgent": "Iomeron 400"}),
        screen=([0.0], {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImagePositionPatient": None}),
        derived=(HEAD, {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}),
        part=(HEAD[:9], {}),
        magnetic=(HEAD, {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}),
        chest=(HEAD, {"BodyPartExamined": "CHEST"}),
        enhanced=([0.0], {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}),
        perfusion=(np.tile(HEAD[:5], 4), {}),
    )
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "empty").write_bytes(b"")
    taken, others = find_series(folder, 5.0)
    assert (taken.number, len(taken.headers), taken.kernel, taken.reason) == (4, 22, "Hr38f", "")
    assert {one.number: one.reason for one in others} == {
        1: "a scout",
        2: "bone kernel",
        3: "slice thickness 2.5 mm, farther from 5 mm",
        5: "a reformat",
        6: "not axial",
        7: "with contrast medium",
        8: "a screen or another secondary image",
        9: "derived images, where original ones are there",
        10: "covers only 40 mm",
        11: "modality MR, not CT",
        12: "a body part other than the head",
        13: "multi-frame (enhanced) CT: to be exported as single images",
        14: "the same positions again and again (dynamic or perfusion)",
    }
    _, _, description = convert(folder, tmp_path)
    assert description["series"]["taken"] == {"number": 4, "files": 22, "slice_thickness_mm": 5.0, "kernel": "Hr38f"}
    assert description["series"]["others"][1] == {"number": 2, "files": 22, "reason": "bone kernel"}
    assert find_series(folder, 1.0)[0].number == 3


def test_scout_inside_the_same_series(tmp_path, write_series):
    folder = write_series(tmp_path / "a", HEAD, stored(len(HEAD)))
    write_series(
        tmp_path / "a" / "sub",
        [0.0],
        stored(1),
        SeriesInstanceUID=pydicom.dcmread(folder / "000").SeriesInstanceUID,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    taken, others = find_series(folder, 5.0)
    assert (len(taken.headers), len(others), others[0].reason) == (22, 1, "a scout")


def test_only_a_bone_kernel_is_better_than_nothing(tmp_path, write_series):
    folder = several(tmp_path, write_series, bone=(HEAD, {"ConvolutionKernel": "H70h"}))
    assert find_series(folder, 5.0)[0].bone


def test_a_soft_derived_series_goes_before_an_original_bone_kernel(tmp_path, write_series):
    soft = (HEAD, {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]})
    folder = several(tmp_path, write_series, bone=(HEAD, {"ConvolutionKernel": "H70h"}), soft=soft)
    assert find_series(folder, 5.0)[0].number == 2


def test_two_equal_series_are_refused_without_their_descriptions(tmp_path, write_series, identity):
    folder = several(tmp_path, write_series, one=(HEAD, {}), two=(HEAD, {}))
    with pytest.raises(InputError) as caught:
        find_series(folder, 5.0)
    assert "2 series fit equally well: series 1 (22 files, 5 mm); series 2 (22 files, 5 mm)" in str(caught.value)
    assert not any(word.lower() in caught.value.problem.lower() for word in identity)


def test_repeated_acquisition_in_one_series_is_refused(tmp_path, write_series):
    pixels = stored(2 * len(HEAD))
    folder = write_series(
        tmp_path / "a", np.tile(HEAD, 2), pixels, edit=lambda i, d: setattr(d, "AcquisitionNumber", 1 + i // 22)
    )
    with pytest.raises(InputError, match="2 series fit equally well"):
        find_series(folder, 5.0)


@pytest.mark.parametrize(
    ("tags", "heights", "problem"),
    [
        ({"Modality": "MR"}, HEAD, r"series 3 \(22 files, 5 mm\): modality MR, not CT"),
        ({"SamplesPerPixel": 3}, HEAD, "colour"),
        ({}, HEAD[:4], "only 4 slices"),
        ({"SeriesDescription": "CTA head"}, HEAD, "with contrast medium"),
        ({"ImagePositionPatient": None}, HEAD, "without position"),
    ],
)
def test_no_series_fits(tmp_path, write_series, tags, heights, problem):
    folder = write_series(tmp_path / "a", heights, stored(len(heights)), **tags)
    with pytest.raises(InputError, match=problem):
        find_series(folder, 5.0)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_series(tmp_path / "absent", 5.0)
    with pytest.raises(InputError, match="no DICOM image"):
        find_series(tmp_path, 5.0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="single file"):
        find_series(tmp_path / "file", 5.0)


def test_linked_folders_are_read_once(tmp_path, write_series):
    folder = write_series(tmp_path / "archive" / "a", HEAD, stored(len(HEAD)))
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "scan").symlink_to(folder)
    (tmp_path / "study" / "again").symlink_to(folder)
    (folder / "loop").symlink_to(tmp_path / "study")
    assert len(find_series(tmp_path / "study", 5.0)[0].headers) == 22


@pytest.mark.parametrize(
    ("kernel", "manufacturer", "bone"),
    [
        ("STANDARD", "GE MEDICAL SYSTEMS", False),
        ("STD+", "GE MEDICAL SYSTEMS", False),
        ("BONEPLUS", "GE MEDICAL SYSTEMS", True),
        ("H31s", "SIEMENS", False),
        ("J40s", "SIEMENS", False),
        ("Hr38f", "SIEMENS", False),
        ("Hr64h", "SIEMENS", True),
        ("H60s", "SIEMENS", True),
        ("UB", "Philips", False),
        ("YC", "Philips", True),
        ("D", "Philips", True),
        ("D", "Other", False),
        ("FC21", "TOSHIBA", False),
        ("FC30", "TOSHIBA", True),
        ("FC64", "TOSHIBA", True),
        (None, "", False),
    ],
)
def test_bone_kernels_by_vendor(kernel, manufacturer, bone):
    assert is_bone_kernel(kernel, manufacturer) is bone


def test_no_identity_in_the_outputs(tmp_path, write_series, identity):
    folder = several(tmp_path, write_series, one=(HEAD, {}), bone=(HEAD, {"ConvolutionKernel": "H70h"}))
    _, _, description = convert(folder, tmp_path)
    contents = (tmp_path / "scan.json").read_bytes() + gzip.decompress((tmp_path / "scan.nii.gz").read_bytes())
    for word in identity:
        assert word.lower().encode() not in contents.lower()
    assert set(description) == {"acquisition", "geometry", "series", "pixel_digest"}


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
    write_volume(tmp_path / "in.nii.gz", head_values(), [[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    with pytest.raises(InputError, match="axial"):
        convert(tmp_path / "in.nii.gz", tmp_path)
    with pytest.raises(InputError, match="not a readable NIfTI"):
        convert(tmp_path / "absent.nii.gz", tmp_path)


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
    assert description["series"]["taken"] == {"number": 201, "files": 28, "slice_thickness_mm": 5.0, "kernel": "UB"}
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
