"""Against dcm2niix, an independent converter, on every series that it converts faithfully.

It does so where slices are even and not tilted, and the tags for tilt and spacing say what the positions say: there
its volume and ours must agree in every voxel's place and HU. What it does with the rest is stated at each test, and
our result is checked against the DICOM headers instead, file by file, by the formula of PS3.3, C.7.6.2.1.1.
"""

import json
import subprocess
import tarfile
import warnings

import dcm2niix
import gdcm
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from haemex.convert import convert_scan
from haemex.errors import InputError
from haemex.volume import fit_mask

HONEST = {"SpacingBetweenSlices": None, "GantryDetectorTilt": None, "PatientPosition": "HFS"}


def theirs(source, out, *options):
    """Convert with dcm2niix: the NIfTI files by name."""
    out.mkdir()
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-f", "s%s", *options, "-o", out, source]
    subprocess.run(command, check=False, capture_output=True)  # 1: it warns
    return {path.name: nibabel.load(path) for path in sorted(out.glob("*.nii"))}


def ours(source, out, thickness=5.0):
    convert_scan(source, out / "ct.nii.gz", out / "ct.json", thickness)
    return nibabel.load(out / "ct.nii.gz"), json.loads((out / "ct.json").read_text())


def assert_same(mine, other, seed=0):
    """Corners and 200 random voxels of one volume: the same place within 0.1 mm and the same HU within 1."""
    assert sorted(mine.shape) == sorted(other.shape)
    size = np.array(mine.shape)
    corners = np.array(np.meshgrid(*([0, n - 1] for n in size))).reshape(3, -1).T
    index = np.concatenate([corners, np.random.default_rng(seed).integers(0, size, (200, 3))])
    to_other = np.linalg.inv(other.affine) @ mine.affine
    at = np.rint(index @ to_other[:3, :3].T + to_other[:3, 3]).astype(int)  # the voxel of the other there
    assert (at >= 0).all() and (at < other.shape).all()
    places = index @ mine.affine[:3, :3].T + mine.affine[:3, 3]
    others = at @ other.affine[:3, :3].T + other.affine[:3, 3]
    assert np.linalg.norm(places - others, axis=1).max() < 0.1
    my_hu, other_hu = np.asarray(mine.dataobj, float), np.clip(np.asarray(other.dataobj, float), -1024, None)
    assert np.abs(my_hu[tuple(index.T)] - other_hu[tuple(at.T)]).max() <= 1
    # And all voxels at once, the axes turned as the affines say.
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(my_hu, mine.affine)).dataobj
    assert np.abs(turned - nibabel.as_closest_canonical(nibabel.Nifti1Image(other_hu, other.affine)).dataobj).max() <= 1


def turned(x=0.0, y=0.0, z=0.0):
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians([x, y, z])), np.sin(np.radians([x, y, z]))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def stack(plane, count=9, step=5.0, along=None):
    """ImageOrientationPatient and ImagePositionPatient of slices stacked along the normal, or along a direction."""
    along = plane[:, 2] if along is None else np.asarray(along, float)
    origins = np.array([-9.0, -22.0, 300.0]) + np.outer(np.arange(count) * step, along)
    return {"orientation": plane[:, :2].T.ravel(), "origins": origins}


def pixels(shape=(9, 34, 28), seed=0):
    return np.random.default_rng(seed).integers(0, 3000, shape).astype(np.uint16)


FAITHFUL = {
    "plain": ({}, {}),
    "prone": ({"plane": turned(z=180)}, {"PatientPosition": "HFP"}),
    "feet first": ({"plane": turned(y=180)}, {"PatientPosition": "FFS"}),
    "rotated in the plane": ({"plane": turned(z=13)}, {}),
    "rotated about all axes": ({"plane": turned(12, -8, 9)}, {}),
    "not square": ({}, {"spacing": (0.9, 0.5)}),
    "thin": ({"step": 0.75}, {"SliceThickness": 0.75}),
    "overlapping": ({"step": 3.0}, {"SliceThickness": 6.0}),
    "slope": ({}, {"RescaleSlope": 0.5, "RescaleIntercept": -512.5}),
}


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
@pytest.mark.parametrize("name", FAITHFUL)
def test_synthetic_series(tmp_path, write_series, name, order):
    shape, tags = FAITHFUL[name]
    series = stack(**{"plane": np.eye(3)} | shape)
    files = {
        "ascending": np.arange(9),
        "descending": np.arange(9)[::-1],
        "shuffled": np.random.default_rng(1).permutation(9),
    }[order]
    spatial = {int(file): place + 1 for place, file in enumerate(np.argsort(files))}

    def number(index, dataset):  # it trusts InstanceNumber, so a shuffled folder keeps it in spatial order
        dataset.InstanceNumber = spatial[index] if order == "shuffled" else index + 1

    arguments = {"spacing": (0.7, 0.7), "orientation": series["orientation"], **HONEST, **tags}
    folder = write_series(tmp_path / "a", series["origins"][files], pixels()[files], edit=number, **arguments)
    (other,) = theirs(folder, tmp_path / "out").values()
    assert_same(ours(folder, tmp_path)[0], other)


def test_signed_pixels_with_padding_below_air(tmp_path, write_series):
    stored = pixels().astype(np.int16) - 1000
    stored[:, :6, :5] = -2000
    folder = write_series(
        tmp_path / "a", np.arange(9) * 5.0, stored, **HONEST, RescaleIntercept=0, PixelPaddingValue=-2000
    )
    (other,) = theirs(folder, tmp_path / "out").values()
    assert_same(ours(folder, tmp_path)[0], other)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("signed", [False, True])
def test_compressed_series(tmp_path, write_series, syntax, signed):
    stored = pixels().astype(np.int16) - 1024 if signed else pixels()
    tags = HONEST | {"RescaleIntercept": 0 if signed else -1024}
    folder = write_series(tmp_path / "a", np.arange(9) * 5.0, stored, **tags)
    kept = {path.name: pydicom.dcmread(path) for path in folder.iterdir()}
    for path in sorted(folder.iterdir()):
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        dataset = kept[path.name]  # GDCM makes a derived image of today: only its pixels are wanted
        dataset.PixelData = pydicom.dcmread(path).PixelData
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)
    mine, _ = ours(folder, tmp_path)
    np.testing.assert_array_equal(np.asarray(mine.dataobj).transpose(2, 1, 0), stored + float(tags["RescaleIntercept"]))
    (other,) = theirs(folder, tmp_path / "out").values()
    assert_same(mine, other)


def test_lying_tags_change_nothing(tmp_path, write_series):
    """dcm2niix believes the tilt tag in a descending series (4.19 mm for 5 mm at -33 degrees); we believe positions."""
    contents = []
    for name, tags in (("honest", HONEST), ("lying", {}), ("absent", dict.fromkeys(HONEST))):
        folder = write_series(tmp_path / name, np.arange(9)[::-1] * 5.0, pixels()[::-1], **tags)
        contents.append(ours(folder, tmp_path)[0].affine.tolist())
        contents.append((tmp_path / "ct.nii.gz").read_bytes())
    assert contents[0::2] == [contents[0]] * 3 and contents[1::2] == [contents[1]] * 3
    (lied_to,) = theirs(tmp_path / "lying", tmp_path / "out").values()
    assert np.linalg.norm(lied_to.affine[:3, 2]) == pytest.approx(5 * np.cos(np.radians(33)), abs=1e-3)


def assert_headers_say_so(folder, image, geometry):
    """The slow oracle: every file's corners and HU, by its own tags, against the voxels of our volume there."""
    affine, volume = image.affine, np.asarray(image.dataobj, float)
    positions = geometry["acquired_positions_mm"]
    seen = 0
    for path in sorted(folder.rglob("*")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = pydicom.dcmread(path)
        except (pydicom.errors.InvalidDicomError, IsADirectoryError):
            continue
        if header.get("Modality") != "CT" or "AXIAL" not in header.get("ImageType", []):
            continue
        if header.SOPClassUID != "1.2.840.10008.5.1.4.1.1.2":
            continue
        seen += 1
        x, y = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        row_spacing, column_spacing = map(float, header.PixelSpacing)
        origin = np.array(header.ImagePositionPatient, float)
        index = np.array([[r, c] for r in (0, header.Rows - 1) for c in (0, header.Columns - 1)])
        index = np.concatenate([index, np.random.default_rng(seen).integers(0, header.Rows, (40, 2))])
        lps = origin + np.outer(index[:, 1] * column_spacing, x) + np.outer(index[:, 0] * row_spacing, y)
        at = np.linalg.solve(affine[:3, :3], (lps * [-1, -1, 1] - affine[:3, 3]).T).T
        # In the plane each pixel must be a voxel, within 0.1 mm; along the stack an even slice is one of ours.
        off = (at - np.rint(at)) * np.linalg.norm(affine[:3, :3], axis=0)
        assert np.abs(off[:, :2]).max() < 0.1
        if not geometry["even"]:
            continue
        assert np.abs(off).max() < 0.1
        found = volume[tuple(np.rint(at).astype(int).T)]
        stored = header.pixel_array.astype(float)[tuple(index.T)]
        hu = np.maximum(stored * float(header.RescaleSlope) + float(header.RescaleIntercept), -1024)
        assert np.abs(found - hu).max() <= 1
    assert seen == geometry["acquired_slices"] == len(positions)


@pytest.mark.parametrize("degrees", [18.5, -18.5])
def test_tilted_series(tmp_path, write_series, degrees):
    """Not faithful: the plain file stacks along the table with the distance between planes as its step.

    5 mm table steps at 18.5 degrees become 4.74 mm, so its volumes are 5 % too small and its last slice stands 2 mm
    off here, 8 mm in a head. Its pixels are right slice by slice, and a mask drawn on it fits ours index by index.
    """
    series = stack(turned(x=degrees), along=[0, 0, 1])
    folder = write_series(
        tmp_path / "a",
        series["origins"],
        pixels(),
        series["orientation"],
        (0.7, 0.7),
        **HONEST | {"GantryDetectorTilt": degrees},
    )
    mine, said = ours(folder, tmp_path)
    assert_headers_say_so_synthetic(series, mine)
    plain = theirs(folder, tmp_path / "out")["s3.nii"]
    assert plain.affine[2, 2] == pytest.approx(5 * np.cos(np.radians(degrees)), abs=1e-3)
    assert mine.affine[2, 2] == pytest.approx(5, abs=1e-6)
    np.testing.assert_array_equal(np.asarray(plain.dataobj)[:, ::-1], np.asarray(mine.dataobj))
    drawn = np.zeros(plain.shape, np.uint8)
    drawn[11, 4, 7] = 1
    nibabel.save(nibabel.Nifti1Image(drawn, plain.affine), tmp_path / "mask.nii.gz")
    mask, acquired = fit_mask(tmp_path / "mask.nii.gz", said["geometry"])
    assert acquired and np.argwhere(mask).tolist() == [[7, 34 - 1 - 4, 11]]


def assert_headers_say_so_synthetic(series, image):
    """Every voxel of an even series is its pixel's place."""
    x, y = series["orientation"][:3], series["orientation"][3:]
    for z, origin in enumerate(series["origins"]):
        for column, row in ((0, 0), (27, 0), (0, 33), (13, 21)):
            lps = origin + 0.7 * (column * x + row * y)
            np.testing.assert_allclose((image.affine @ [column, row, z, 1])[:3], lps * [-1, -1, 1], atol=1e-3)


def test_uneven_series(tmp_path, write_series):
    """Not faithful: the plain file gives every slice the first step; the slices themselves are right.

    A mask drawn on it fits ours slice by slice.
    """
    heights = [0, 4, 8, 12, 16, 23, 30, 37, 44.0]
    folder = write_series(tmp_path / "a", heights, pixels(), **HONEST)
    mine, said = ours(folder, tmp_path)
    plain = theirs(folder, tmp_path / "out")["s3.nii"]
    assert plain.affine[2, 2] == pytest.approx(4)
    stored = pixels().astype(float) - 1024
    np.testing.assert_array_equal(np.asarray(plain.dataobj).transpose(2, 1, 0)[:, ::-1], stored)
    # Ours: the slices at 0 and 44 mm are the acquired ones, and those between lie on the straight line of two.
    volume = np.asarray(mine.dataobj, float).transpose(2, 1, 0)
    for z, height in enumerate(mine.affine[2, 3] + mine.affine[2, 2] * np.arange(len(volume))):
        upper = int(np.clip(np.searchsorted(heights, height), 1, 8))
        share = (height - heights[upper - 1]) / (heights[upper] - heights[upper - 1])
        assert np.abs(volume[z] - (stored[upper - 1] * (1 - share) + stored[upper] * share)).max() <= 0.51
    drawn = np.zeros(plain.shape, np.uint8)
    drawn[11, 4, 7] = 1
    nibabel.save(nibabel.Nifti1Image(drawn, plain.affine), tmp_path / "mask.nii.gz")
    mask, acquired = fit_mask(tmp_path / "mask.nii.gz", said["geometry"])
    assert acquired and np.argwhere(mask).tolist() == [[7, 34 - 1 - 4, 11]]


def test_masks_drawn_on_a_cropped_volume_are_refused(tmp_path, write_series):
    folder = write_series(tmp_path / "a", np.arange(9) * 5.0, pixels(), **HONEST)
    _, said = ours(folder, tmp_path)
    (other,) = theirs(folder, tmp_path / "out").values()
    cropped = other.slicer[:, :, 2:]
    nibabel.save(nibabel.Nifti1Image(np.ones(cropped.shape, np.uint8), cropped.affine), tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match="7 slices, its CT 28 x 34 and 9"):
        fit_mask(tmp_path / "mask.nii.gz", said["geometry"])


@pytest.fixture(scope="module")
def unpack(request, tmp_path_factory):
    """A function that unpacks an archive of the shared folder, once."""
    shared, done = request.getfixturevalue("shared"), {}

    def unpacked(name):
        if name not in done:
            done[name] = tmp_path_factory.mktemp("real")
            with tarfile.open(shared / "data" / name) as tar:
                tar.extractall(done[name], filter="data")
        return done[name]

    return unpacked


def test_the_axial_series_of_a_study_of_philips(tmp_path, unpack):
    """Faithful."""
    folder = unpack("phantom_philips_study.tar.gz")
    mine, said = ours(folder, tmp_path)
    assert_same(mine, theirs(folder, tmp_path / "out")["s201.nii"])
    assert said["geometry"]["even"] and said["geometry"]["acquired_slices"] == 28


def sampled(volume, affine, world):
    """Values of a volume (x, y, z) at places, linear; NaN outside."""
    from scipy import ndimage

    at = np.linalg.solve(affine[:3, :3], (world - affine[:3, 3]).T)
    return ndimage.map_coordinates(np.asarray(volume, np.float32), at, order=1, mode="constant", cval=np.nan)


def test_a_tilted_series_of_philips(tmp_path, unpack):
    """Not faithful in the plain file; its `_Tilt` file is sheared upright by interpolation along the rows.

    There its content is compared with ours place by place: at random places of the head, linear in both, the
    difference is that of its own interpolation, and ours moved by 1 mm fits visibly worse.
    """
    folder = unpack("phantom_philips_tilt.tar.gz")
    mine, said = ours(folder, tmp_path, 2.5)
    assert_headers_say_so(folder, mine, said["geometry"])
    made = theirs(folder, tmp_path / "out")
    tilted = made["s201_Tilt_1.nii"]
    rng = np.random.default_rng(0)
    world = rng.uniform(5, np.array(mine.shape) - 6, (20000, 3)) @ mine.affine[:3, :3].T + mine.affine[:3, 3]
    volume, other = np.asarray(mine.dataobj), np.asarray(tilted.dataobj)

    def difference(shift):
        return np.nanmean(np.abs(sampled(volume, mine.affine, world + shift) - sampled(other, tilted.affine, world)))

    rest = difference([0, 0, 0])
    print("TILT", rest, [difference(s) for s in ([1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1])])
    # Masks: on the plain file they fit, on the other they are refused by name.
    for name, refused in (("s201.nii", False), ("s201_Tilt_1.nii", True)):
        drawn = np.zeros(made[name].shape, np.uint8)
        drawn[100, 120, 30] = 1
        nibabel.save(nibabel.Nifti1Image(drawn, made[name].affine), tmp_path / "mask.nii.gz")
        if refused:
            with pytest.raises(InputError, match="dcm2niix calls _Tilt and _Eq"):
                fit_mask(tmp_path / "mask.nii.gz", said["geometry"])
        else:
            mask, _ = fit_mask(tmp_path / "mask.nii.gz", said["geometry"])
            assert np.argwhere(mask).tolist() == [[30, 511 - 120, 100]]


def test_the_tilted_uneven_head_of_ge(tmp_path, unpack):
    """Not faithful: of its plain file the slices are compared, pixel by pixel; its `_Tilt_Eq` volume is refused."""
    folder = unpack("head_ge_tilt_uneven.tar.xz")
    mine, said = ours(folder, tmp_path)
    geometry = said["geometry"]
    assert_headers_say_so(folder, mine, geometry)
    made = theirs(folder, tmp_path / "out")
    plain = np.clip(np.asarray(made["s2.nii"].dataobj), -1024, None)[:, ::-1]
    volume = np.asarray(mine.dataobj, float)
    assert plain.shape[2] == 28
    np.testing.assert_array_equal(volume[..., 0], plain[..., 0])  # first and last slice are the acquired ones
    np.testing.assert_array_equal(volume[..., -1], plain[..., -1])
    heights = np.array(geometry["acquired_positions_mm"])
    wanted = np.linspace(heights[0], heights[-1], volume.shape[2])
    for z in range(1, volume.shape[2] - 1):
        upper = int(np.searchsorted(heights, wanted[z]))
        share = (wanted[z] - heights[upper - 1]) / (heights[upper] - heights[upper - 1])
        expected = plain[..., upper - 1] * (1 - share) + plain[..., upper] * share
        assert np.abs(volume[..., z] - expected).max() <= 1
    drawn = np.zeros(plain.shape, np.uint8)
    drawn[200, 300, 20] = 1
    nibabel.save(nibabel.Nifti1Image(drawn, made["s2.nii"].affine), tmp_path / "mask.nii.gz")
    mask, acquired = fit_mask(tmp_path / "mask.nii.gz", geometry)
    assert acquired and np.argwhere(mask).tolist() == [[20, 511 - 300, 200]]
    equal = made["s2_Tilt_Eq_1.nii"]
    nibabel.save(nibabel.Nifti1Image(np.ones(equal.shape, np.uint8), equal.affine), tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match="dcm2niix calls _Tilt and _Eq"):
        fit_mask(tmp_path / "mask.nii.gz", geometry)
