import contextlib
import shutil
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_folders import (
    COLUMNS,
    HEAD,
    HEIGHTS,
    ROWS,
    change,
    convert,
    scan_geometry,
    stored,
    transcode,
    write_enhanced,
)
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate

from haemex.dicom import read_headers, read_hu
from haemex.errors import InputError
from haemex.series import find_series


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


# ---------------------------------------------------------------- pixels as stored


def smooth(kind):
    """A head-like range of values without hard edges, 16 bits signed or 12 bits unsigned."""
    y, x = np.mgrid[:32, :40]
    pixels = np.array([1200 + 900 * np.sin(y / 5 + z) * np.cos(x / 7) for z in range(6)]).astype(int)
    return (pixels - 1024).astype(np.int16) if kind == "signed" else pixels.astype(np.uint16)


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
@pytest.mark.parametrize(
    "syntax",
    [
        "ImplicitVRLittleEndian",
        "ExplicitVRBigEndian",
        "DeflatedExplicitVRLittleEndian",
        "RLELossless",
        "JPEGLosslessProcess14",
        "JPEGLosslessProcess14_1",
        "JPEGLSLossless",
        "JPEG2000Lossless",
    ],
)
def test_every_lossless_transfer_syntax_gives_the_same_values(tmp_path, write_series, syntax, kind):
    tags = {"RescaleIntercept": 0} if kind == "signed" else {"BitsStored": 12, "HighBit": 11}
    plain = write_series(tmp_path / "a", HEIGHTS, smooth(kind), **tags)
    packed = transcode(plain, tmp_path / "b", syntax)
    assert pydicom.dcmread(packed / "000").file_meta.TransferSyntaxUID != "1.2.840.10008.1.2.1"
    first, second = convert(plain, tmp_path, "first"), convert(packed, tmp_path, "second")
    np.testing.assert_array_equal(first[0], smooth(kind).astype(int) - (0 if kind == "signed" else 1024))
    assert first[2] == second[2]
    assert (tmp_path / "first.nii.gz").read_bytes() == (tmp_path / "second.nii.gz").read_bytes()


@pytest.mark.parametrize("syntax", ["JPEG2000", "JPEGLSNearLossless", "JPEGBaselineProcess1"])
def test_lossy_images_are_close_and_said_to_be_lossy(tmp_path, write_series, syntax):
    tags, pixels = {}, smooth("unsigned")
    if syntax == "JPEGBaselineProcess1":  # eight bits
        pixels = (pixels // 16).astype(np.uint8)
        tags = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "RescaleSlope": 16}

    def store(index, dataset):
        dataset.PixelData = pixels[index].tobytes()

    plain = write_series(tmp_path / "a", HEIGHTS, pixels.astype(np.uint16), edit=store, **tags)
    packed = transcode(plain, tmp_path / "b", syntax)
    for path in packed.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.LossyImageCompression = "01" if syntax == "JPEG2000" else None
        dataset.save_as(path)
    hu, _, description = convert(packed, tmp_path)
    # GDCM's JPEG quality leaves an eighth of the range in eight bits: two of 256 grey values here.
    assert np.abs(hu - convert(plain, tmp_path)[0]).max() <= (48 if tags else 2)
    assert any("compressed with loss" in one["problem"] for one in description["warnings"])
    assert not any("loss" in one["problem"] for one in convert(plain, tmp_path)[2]["warnings"])


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000"),
        ("1.2.840.10008.1.2.4.51", "12 bits"),
        ("1.2.3", "1.2.3"),
        ("1.2.3 DOE^JANE", "something unknown"),
    ],
)
def test_what_cannot_be_decoded_is_refused_by_name_before_any_pixel_is_read(tmp_path, write_series, syntax, name):
    folder = write_series(tmp_path / "a", HEIGHTS, smooth("unsigned"), BitsStored=12, HighBit=11)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PixelData = encapsulate([dataset.PixelData])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=True)
    with pytest.raises(InputError, match=name) as caught:
        scan_geometry(folder, 5.0)
    assert "export the series uncompressed" in caught.value.action
    assert "JANE" not in str(caught.value)


@pytest.mark.parametrize("kind", ["signed", "unsigned"])
def test_rubbish_in_the_unused_bits_is_blanked_out(tmp_path, write_series, kind):
    values = np.random.default_rng(2).integers(0, 4096, (6, ROWS, COLUMNS))
    if kind == "signed":
        values -= 2048
    rubbish = np.random.default_rng(3).integers(0, 16, values.shape) << 12
    pixels = ((values & 0xFFF) | rubbish).astype(np.uint16)
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": int(kind == "signed"), "RescaleIntercept": 0}
    hu, _, _ = convert(write_series(tmp_path / "a", HEIGHTS, pixels, **tags), tmp_path)
    np.testing.assert_array_equal(hu, np.maximum(values, -1024))


def test_pixels_in_the_high_bits(tmp_path, write_series):
    values = np.random.default_rng(2).integers(0, 4096, (6, ROWS, COLUMNS)).astype(np.uint16)
    folder = write_series(tmp_path / "a", HEIGHTS, values << 4, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(convert(folder, tmp_path)[0], values.astype(int) - 1024)
    careless = write_series(tmp_path / "b", HEIGHTS, values, BitsStored=12, HighBit=15)  # only the tag is wrong
    np.testing.assert_array_equal(convert(careless, tmp_path, "b")[0], values.astype(int) - 1024)


def test_padding_beyond_the_stored_bits(tmp_path, write_series):
    # -2000 as 16 bits in an unsigned 12-bit image: the 12 bits alone would read 2096.
    pixels = np.full((6, ROWS, COLUMNS), 1100, np.uint16)
    pixels[:, 0] = 63536
    tags = {"BitsStored": 12, "HighBit": 11, "PixelPaddingValue": 63536}
    hu, _, _ = convert(write_series(tmp_path / "a", HEIGHTS, pixels, **tags), tmp_path)
    assert hu[0, :, 0].tolist() == [-1024, 76, 76, 76]


def test_inverted_display_does_not_invert_the_values(tmp_path, write_series):
    # MONOCHROME1 says how to show stored values; the rescale to HU holds all the same.
    pixels = np.random.default_rng(1).integers(0, 2500, (6, ROWS, COLUMNS)).astype(np.uint16)
    folder = write_series(tmp_path / "a", HEIGHTS, pixels, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(convert(folder, tmp_path)[0], pixels.astype(int) - 1024)


def test_slope_of_a_single_slice(tmp_path, write_series):
    pixels = np.full((6, ROWS, COLUMNS), 1000, np.uint16)
    folder = write_series(tmp_path / "a", HEIGHTS, pixels, edit=change("RescaleSlope", 1.05, at=2))
    assert convert(folder, tmp_path)[0][:, 0, 0].tolist() == [-24, -24, 26, -24, -24, -24]


def test_values_without_air_or_bone_are_warned_of(tmp_path, write_series):
    folder = write_series(tmp_path / "a", HEIGHTS, np.full((6, ROWS, COLUMNS), 60, np.uint16), RescaleIntercept=0)
    (warning,) = [one for one in convert(folder, tmp_path)[2]["warnings"] if "air and bone" in one["problem"]]
    assert "values from 60 to 60 HU" in warning["problem"]


# ---------------------------------------------------------------- frames


def plain_and_enhanced(tmp_path, write_series, **options):
    pixels = np.random.default_rng(4).integers(0, 2500, (22, 8, 10)).astype(np.uint16)
    cos, sin = np.cos(np.radians(12)), np.sin(np.radians(12))
    plain = write_series(
        tmp_path / "plain", HEAD, pixels, orientation=(1, 0, 0, 0, cos, -sin), edit=change("RescaleIntercept", -1000, 4)
    )
    return plain, write_enhanced(plain, tmp_path / "enhanced" / "one file", **options)


@pytest.mark.parametrize("legacy", [False, True])
def test_enhanced_ct_gives_the_same_bytes_as_the_same_classic_images(tmp_path, write_series, legacy):
    order = np.random.default_rng(5).permutation(22)
    plain, enhanced = plain_and_enhanced(tmp_path, write_series, legacy=legacy, order=order)
    first, second = convert(plain, tmp_path, "first"), convert(enhanced, tmp_path, "second")
    assert (tmp_path / "first.nii.gz").read_bytes() == (tmp_path / "second.nii.gz").read_bytes()
    for part in ("acquisition", "geometry", "pixel_digest", "warnings"):
        assert first[2][part] == second[2][part]
    assert second[2]["series"]["taken"]["files"] == 1
    assert "22 frames in 1 file" in str(find_series(enhanced, 5.0)[0])


def test_compressed_frames(tmp_path, write_series):
    _, enhanced = plain_and_enhanced(tmp_path, write_series)
    dataset = pydicom.dcmread(enhanced / "one file")
    dataset.compress(pydicom.uid.RLELossless)
    (tmp_path / "packed").mkdir()
    dataset.save_as(tmp_path / "packed" / "x")
    packed = convert(tmp_path / "packed", tmp_path)
    assert packed[2]["pixel_digest"] == convert(enhanced, tmp_path)[2]["pixel_digest"]


def test_scout_and_derived_frames_are_left_out(tmp_path, write_series):
    def mix(dataset):
        frames = dataset.PerFrameFunctionalGroupsSequence
        frames[0].CTImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
        frames[0].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 500]
        frames[0].PlaneOrientationSequence = [pydicom.Dataset()]
        frames[0].PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        for index in range(1, 5):
            frames[index].CTImageFrameTypeSequence[0].FrameType = ["DERIVED", "PRIMARY", "VOLUME", "MAXIMUM"]
            frames[index].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 600 + index]

    _, enhanced = plain_and_enhanced(tmp_path, write_series, edit=mix)
    taken, others = find_series(enhanced, 5.0)
    assert taken.slices == 17
    assert sorted((one.slices, one.reason) for one in others) == [(1, "a scout"), (4, "a projection")]


@pytest.mark.parametrize("lost", ["PlanePositionSequence", "all", "one"])
def test_enhanced_ct_that_does_not_say_where_its_frames_lie(tmp_path, write_series, lost):
    def lose(dataset):
        if lost == "all":
            del dataset.PerFrameFunctionalGroupsSequence
        elif lost == "one":
            dataset.NumberOfFrames = 23
        else:
            for frame in dataset.PerFrameFunctionalGroupsSequence:
                delattr(frame, lost)

    _, enhanced = plain_and_enhanced(tmp_path, write_series, edit=lose)
    with pytest.raises(InputError, match=r"without position|does not say where its frames lie"):
        convert(enhanced, tmp_path)


# ---------------------------------------------------------------- files that are damaged, or none


def test_damaged_files_of_the_scan_are_refused_and_others_are_not_missed(tmp_path, write_series):
    write_series(tmp_path / "study" / "a", HEAD, stored(len(HEAD)))
    report = write_series(tmp_path / "study" / "report", [0.0], stored(1), Modality="SR", SeriesNumber=99)
    other = write_series(tmp_path / "study" / "thin", HEAD, stored(len(HEAD)), SeriesNumber=4, SliceThickness=1.0)
    whole = convert(tmp_path / "study", tmp_path)[2]
    for path, keep in ((report / "000", 500), (other / "003", -30), (other / "004", -100)):
        path.write_bytes(path.read_bytes()[:keep])
    description = convert(tmp_path / "study", tmp_path)[2]
    assert description["pixel_digest"] == whole["pixel_digest"]
    assert description["series"]["taken"]["label"] == "3"
    content = (tmp_path / "study" / "a" / "021").read_bytes()
    # At every length: read whole, refused by name, or ignored because the file no longer says that it is DICOM.
    silent = []
    for keep in [0, 4, 100, 132, 140, 200, 300, 400, 600, 800, len(content) - 100, len(content) - 1]:
        (tmp_path / "study" / "a" / "021").write_bytes(content[:keep])
        try:
            assert convert(tmp_path / "study", tmp_path)[2]["pixel_digest"] != whole["pixel_digest"]
            silent.append(keep)
        except InputError as error:
            assert error.file.endswith("021"), keep
    assert not silent


@pytest.mark.parametrize("keep", range(0, 1300, 50))
def test_a_file_cut_anywhere_in_its_header_never_passes_unseen(tmp_path, write_series, keep):
    folder = write_series(tmp_path / "a", HEAD, stored(len(HEAD)))
    content = (folder / "021").read_bytes()
    (folder / "021").write_bytes(content[: min(keep, len(content) - 1)])
    with pytest.raises(InputError):
        scan_geometry(folder, 5.0)


@pytest.mark.parametrize("keyword", ["Rows", "Manufacturer", "StudyInstanceUID"])
def test_a_tag_of_damaged_type_is_refused_by_file(tmp_path, write_series, keyword):
    folder = write_series(tmp_path / "a", HEAD, stored(len(HEAD)))
    tag = pydicom.tag.Tag(keyword)
    mark = struct.pack("<HH", tag.group, tag.element)
    content = (folder / "007").read_bytes()
    at = content.index(mark) + 4
    (folder / "007").write_bytes(content[:at] + b"U5" + content[at + 2 :])
    with pytest.raises(InputError) as caught:
        scan_geometry(folder, 5.0)
    assert caught.value.file.endswith("007")


def test_a_matrix_of_two_values_is_refused_by_file(tmp_path, write_series):
    folder = write_series(tmp_path / "a", HEAD, stored(len(HEAD)), edit=change("Rows", [4, 4], 7))
    with pytest.raises(InputError, match="cannot be read") as caught:
        scan_geometry(folder, 5.0)
    assert caught.value.file.endswith("007")


def test_empty_files_and_broken_links_count_only_beside_the_images(tmp_path, write_series):
    folder = write_series(tmp_path / "study" / "a", HEAD, stored(len(HEAD)))
    (tmp_path / "study" / "done").write_bytes(b"")
    (tmp_path / "study" / "latest").symlink_to(tmp_path / "absent")
    (folder / ".complete").write_bytes(b"")
    (folder / "done.txt").write_bytes(b"")
    (folder / "list.xml").symlink_to(tmp_path / "absent")
    assert find_series(tmp_path / "study", 5.0)[0].slices == 22
    (folder / "022").symlink_to(tmp_path / "absent")
    with pytest.raises(InputError, match="a link to a file that is not there"):
        find_series(tmp_path / "study", 5.0)
    (folder / "022").unlink()
    (folder / "022").write_bytes(b"")
    with pytest.raises(InputError, match="an empty file"):
        find_series(tmp_path / "study", 5.0)


def test_a_folder_of_links_to_nothing(tmp_path):
    for name in ("1", "2"):
        (tmp_path / name).symlink_to(tmp_path / "absent")
    with pytest.raises(InputError, match="2 x a link to a file that is not there"):
        find_series(tmp_path, 5.0)


def test_files_and_folders_that_may_not_be_read(tmp_path, write_series, monkeypatch):
    folder = write_series(tmp_path / "a", HEAD, stored(len(HEAD)))
    (folder / "locked").write_bytes((folder / "000").read_bytes())
    opened = Path.open

    def deny(path, *arguments, **options):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", deny)  # tests may run as root, whom no right is denied
    with pytest.raises(InputError, match="cannot be read") as caught:
        find_series(folder, 5.0)
    assert caught.value.file.endswith("locked")


def test_what_is_no_dicom_is_ignored(tmp_path, write_series):
    folder = write_series(tmp_path / "a", HEAD, stored(len(HEAD)))
    rubbish = {
        "notes.txt": b"MATRIX 512",
        "setup.exe": b"MZ" + bytes(600),
        "images.zip": b"PK\x03\x04" + bytes(600),
        ".DS_Store": b"\x00\x00\x00\x01Bud1" + bytes(600),
        "._001": b"\x00\x05\x16\x07" + bytes(600),
        "key.jpg": b"\xff\xd8\xff\xe0" + bytes(600),
        "group two": b"\x02\x00" + b"\xff" * 600,
        "noise": np.random.default_rng(0).bytes(3000),
    }
    for name, content in rubbish.items():
        (folder / name).write_bytes(content)
    for index in range(500):
        (folder / f"{index}.log").write_text("line\n" * 50)
    taken, others = find_series(folder, 5.0)
    assert (taken.slices, others) == (22, [])


def test_dicomdir_is_ignored(tmp_path, write_series):
    folder = write_series(tmp_path / "a", HEAD, stored(len(HEAD)))
    source = Path(get_testdata_file("CT_small.dcm")).parent / "dicomdirtests" / "DICOMDIR"
    for name in ("DICOMDIR", "anything"):
        shutil.copy(source, folder / name)
    assert find_series(folder, 5.0)[1] == []


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("CT_small.dcm", -896, 1167),
        ("JPEG2000.dcm", None, None),
        ("693_J2KI.dcm", None, None),
        ("meta_missing_tsyntax.dcm", None, None),
        ("ExplVR_BigEndNoMeta.dcm", None, None),
        ("ExplVR_LitEndNoMeta.dcm", None, None),
        ("no_meta.dcm", None, None),
        ("MR_truncated.dcm", None, None),
        ("rtplan_truncated.dcm", None, None),
        ("badVR.dcm", None, None),
        ("examples_overlay.dcm", None, None),
    ],
)
def test_odd_files_of_pydicom_are_read_or_refused(tmp_path, name, low, high):
    shutil.copy(get_testdata_file(name, download=False), tmp_path / "x")
    with pytest.raises(InputError):  # none is a whole head
        find_series(tmp_path, 5.0)
    headers, damaged = read_headers(tmp_path)
    assert len(headers) + len(damaged) <= 1
    for header in headers:
        if low is not None:
            hu = read_hu(header)
            assert (hu.min(), hu.max()) == (low, high)
            continue
        with contextlib.suppress(InputError):
            assert read_hu(header).ndim == 2


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEG2000Lossless", "JPEGLSLossless", "RLELossless"])
@pytest.mark.parametrize("keep", [-20, -400])
def test_compressed_files_that_break_off(tmp_path, write_series, syntax, keep):
    packed = transcode(write_series(tmp_path / "a", HEIGHTS, smooth("unsigned")), tmp_path / "b", syntax)
    content = (packed / "002").read_bytes()
    (packed / "002").write_bytes(content[:keep])
    with pytest.raises(InputError, match=r"no pixels|cut off") as caught:
        convert(packed, tmp_path)
    assert caught.value.file.endswith("002")
