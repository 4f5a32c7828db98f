"""Voxels are where they should be: fiducials of known millimetre position, from DICOM through every stage and back.

The series are made by the formula of DICOM PS3.3, C.7.6.2.1.1 and by nothing of haemex, and NIfTI files are read by
nibabel. Coordinates are RAS, mm, unless a name says LPS, which is DICOM's.
"""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from haemex.augment import augment_patient
from haemex.convert import convert_scan
from haemex.geometry import stack_geometry
from haemex.nifti import write_volume
from haemex.resample import resample_haematoma, resample_scan
from haemex.volume import fit_mask, mask_volume_ml, measure_patient

FLIP = np.array([-1.0, -1.0, 1.0])  # LPS to RAS and back
MIDDLE = np.array([4.3, -11.7, 31.9])  # of every scan, LPS: off the origin


def turned(x=0.0, y=0.0, z=0.0):
    """A rotation matrix: about x first, then y, then z, degrees."""
    about = []
    for angle, (i, j) in zip(np.radians([x, y, z]), ((1, 2), (2, 0), (0, 1)), strict=True):
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[j, i], turn[i, j] = np.sin(angle), -np.sin(angle)
        about.append(turn)
    return about[2] @ about[1] @ about[0]


def acquisition(
    heights=tuple(range(0, 65, 5)), plane=None, along=None, spacing=(0.9, 0.9), matrix=(30, 26), order=None
):
    """Describe a series: `orientation` and `origins` in LPS (as the tags hold them), `spacing` (rows, columns).

    `heights` of the slices in mm `along` a direction (default: the normal), `plane` the matrix that turns an axial
    image plane, `matrix` (columns, rows), `order` of the files.
    """
    plane = np.eye(3) if plane is None else plane
    across, down, normal = plane.T
    along = normal if along is None else np.asarray(along, float)
    heights = np.asarray(heights, float)
    corner = across * spacing[1] * (matrix[0] - 1) / 2 + down * spacing[0] * (matrix[1] - 1) / 2
    origins = MIDDLE - corner + np.outer(heights - (heights[0] + heights[-1]) / 2, along)
    order = range(len(heights)) if order is None else order
    return {
        "orientation": np.concatenate([across, down]),
        "origins": origins[list(order)],
        "spacing": spacing,
        "matrix": matrix,
    }


def places(series):
    """Centres of all pixels, (slice, row, column, 3), RAS, mm: PS3.3, C.7.6.2.1.1."""
    across, down = series["orientation"][:3], series["orientation"][3:]
    columns, rows = series["matrix"]
    row, column = np.arange(rows)[:, None, None], np.arange(columns)[:, None]
    in_plane = across * series["spacing"][1] * column + down * series["spacing"][0] * row
    return (series["origins"][:, None, None, :] + in_plane) * FLIP


def save(write_series, folder, series, hu, **tags):
    """Write HU, (slice, row, column), as a DICOM series."""
    stored = np.rint(np.asarray(hu, float) + 1024)
    assert stored.min() >= 0 and stored.max() < 2**16
    origins, spacing = series["origins"], series["spacing"]
    return write_series(folder, origins, stored.astype(np.uint16), series["orientation"], spacing, **tags)


def load(path):
    """Array (x, y, z) and affine, by nibabel."""
    image = nibabel.load(path)
    return np.asarray(image.dataobj, float), image.affine


def centres(affine, shape):
    """Centres of all voxels of a NIfTI volume, (x, y, z, 3), mm."""
    return np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3]


def gantry(degrees):
    """A plane tilted about x and the table's axis, along which the slices are still stacked."""
    return {"plane": turned(x=degrees), "along": [0, 0, 1]}


UNEVEN = [0, 4, 8, 12, 16, 17.1, 24, 31, 38, 45, 52, 59, 66]
SHUFFLED = [3, 11, 0, 7, 5, 12, 1, 9, 2, 10, 6, 4, 8]
TRAPS = {
    "plain": {},
    "tilt +18.5": gantry(18.5),
    "tilt -18.5": gantry(-18.5),
    "tilt +30, thin": gantry(30) | {"heights": np.arange(13) * 2.5},
    "reversed": {"order": range(12, -1, -1)},
    "reversed, tilted": gantry(22) | {"order": range(12, -1, -1)},
    "shuffled": {"order": SHUFFLED},
    "shuffled, tilted, uneven": gantry(-18.5) | {"heights": UNEVEN, "order": SHUFFLED},
    "duplicates": {"order": [0, 1, 2, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12]},
    "uneven": {"heights": UNEVEN},
    "uneven, tilted": gantry(18.5) | {"heights": UNEVEN},
    "overlapping": {"heights": np.arange(13) * 2.0},
    "rotated in the plane": {"plane": turned(z=17)},
    "rotated about all axes": {"plane": turned(11, -9, 14)},
    "rotated about all axes, tilted": {"plane": turned(11, -9, 14), "along": [0, 0, 1]},
    "rotated, tilted, uneven, not square": {
        "plane": turned(-14, 6, -8),
        "along": [0, 0, 1],
        "heights": UNEVEN,
        "spacing": (1.3, 0.7),
    },
    "not square": {"spacing": (1.4, 0.6)},
    "anisotropic": {"spacing": (0.4, 0.4), "heights": np.arange(11) * 8.0},
    "prone": {"plane": turned(z=180)},
    "feet first": {"plane": turned(y=180)},
    "feet first, tilted": {"plane": turned(y=180) @ turned(x=15), "along": [0, 0, 1]},
    "last row shorter": {"matrix": (31, 17)},
}


@pytest.fixture(params=list(TRAPS))
def series(request):
    return acquisition(**TRAPS[request.param])


def test_every_voxel_of_the_converted_scan_is_where_its_pixel_was(tmp_path, write_series, series):
    """Three series whose HU grow along x, y, z: each voxel says where it was. Linear ramps survive the even grid."""
    mm = places(series)
    low = mm.reshape(-1, 3).min(0)
    gain = 33000 / np.ptp(mm.reshape(-1, 3), axis=0).max()  # 200 to 500 HU a mm
    decoded = []
    for axis in range(3):
        hu = -1000 + gain * (mm[..., axis] - low[axis])
        save(write_series, tmp_path / str(axis), series, hu)  # SpacingBetweenSlices and the tilt tag lie
        convert_scan(tmp_path / str(axis), tmp_path / "a.nii.gz", tmp_path / "a.json", 5.0)
        values, affine = load(tmp_path / "a.nii.gz")
        decoded.append((values + 1000) / gain + low[axis])
    error = np.linalg.norm(np.stack(decoded, axis=-1) - centres(affine, values.shape), axis=-1)
    assert error.max() < 0.05
    # The volume reaches exactly from the first to the last slice.
    found = centres(affine, values.shape).reshape(-1, 3)
    np.testing.assert_allclose(found.min(0), low, atol=0.01)
    np.testing.assert_allclose(found.max(0), mm.reshape(-1, 3).max(0), atol=0.01)


@pytest.mark.parametrize("trap", TRAPS)
def test_blobs_are_found_where_they_were_put(tmp_path, write_series, trap):
    """A Gaussian fiducial: its intensity centroid is its centre.

    Where the step changes, linear interpolation draws a blob towards the closer slices, by a few hundredths of the
    step: in uneven series the fiducial stands clear of that place.
    """
    given_as, sigma = dict(TRAPS[trap]), 6.0
    if "uneven" in trap:
        given_as["heights"], sigma = [*np.arange(-92, 16, 4), *UNEVEN[4:]], 7.0
        given_as["order"] = np.random.default_rng(0).permutation(len(given_as["heights"]))
    elif "heights" in given_as:  # long enough
        given_as["heights"] = np.arange(1 + 90 // given_as["heights"][1]) * given_as["heights"][1]
    rows, columns = given_as.get("spacing", (0.9, 0.9))
    scale = max(0.9, 0.8 / min(rows, columns))
    series = acquisition(**given_as | {"matrix": (90, 84), "spacing": (scale * rows, scale * columns)})
    mm = places(series)
    share = 0.3 if "uneven" in trap else 0.51  # of the way from the first to the last slice
    ends = mm.reshape(len(mm), -1, 3).mean(1)[np.argsort(series["origins"][:, 2])][[0, -1]]
    centre = ends[0] + share * (ends[1] - ends[0]) + [1.3, -0.7, 0.9]
    hu = 20000 * np.exp(-((mm - centre) ** 2).sum(-1) / (2 * sigma**2))
    save(write_series, tmp_path / "a", series, hu)
    convert_scan(tmp_path / "a", tmp_path / "a.nii.gz", tmp_path / "a.json", 5.0)
    values, affine = load(tmp_path / "a.nii.gz")
    assert np.linalg.norm(centroid(values, affine) - centre) < 0.05


def centroid(weights, affine):
    """Centre of mass of a volume (x, y, z), mm."""
    return np.average(centres(affine, weights.shape).reshape(-1, 3), axis=0, weights=weights.ravel())


def ellipsoid(mm, centre, axes, turn=None):
    """1 where a place lies in an ellipsoid; `mm` (..., 3)."""
    away = (mm - centre) @ (np.eye(3) if turn is None else turn)
    return ((away / axes) ** 2).sum(-1) <= 1


def squared_affine(series):
    """The affine that ITK gives a series in ascending order: stacked along the normal from the first slice, RAS."""
    across, down = series["orientation"][:3], series["orientation"][3:]
    normal = np.cross(across, down)
    order = np.argsort(series["origins"] @ normal)
    first, last = series["origins"][order[[0, -1]]]
    step_mm = np.linalg.norm(last - first) / (len(order) - 1)
    affine = np.eye(4)
    affine[:3] = FLIP[:, None] * np.column_stack(
        [across * series["spacing"][1], down * series["spacing"][0], normal * step_mm, first]
    )
    return affine


def ascending(series, volume):
    """Slices by their place along the normal, doubled ones once; (slice, row, column)."""
    normal = np.cross(series["orientation"][:3], series["orientation"][3:])
    _, order = np.unique(np.round(series["origins"] @ normal, 6), return_index=True)
    return volume[order]


LONG = {
    "tilted": gantry(18.5) | {"heights": np.arange(24) * 5.0},
    "tilted the other way, thin": gantry(-25) | {"heights": np.arange(44) * 2.5},
    "uneven": {"heights": [*range(0, 60, 4), 57.1, *range(63, 120, 7)]},
    "uneven, tilted": gantry(-18.5) | {"heights": [*range(0, 60, 4), 57.1, *range(63, 120, 7)]},
    "anisotropic": {"heights": np.arange(20) * 6.0, "spacing": (1.0, 0.6), "matrix": (190, 110)},
    "rotated": {"plane": turned(9, -7, 16), "heights": np.arange(24) * 5.0},
    "all at once": {
        "plane": turned(14, 6, -12),
        "along": [0, 0, 1],
        "heights": [*range(0, 60, 4), 57.1, *range(63, 120, 7)],
        "spacing": (0.6, 1.0),
        "matrix": (110, 190),
    },
}


def long_series(trap):
    return acquisition(**{"spacing": (0.7, 0.7), "matrix": (160, 160)} | LONG[trap])


def write_mask(path, mask, affine):
    """Write a mask (slice, row, column) by nibabel."""
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8).transpose(2, 1, 0), affine), path)


def measure(folder, mask_path):
    """Run the stage `measure` on what `convert` left; its JSON."""
    measure_patient(
        patient="P1",
        baseline_mask=mask_path,
        baseline_json=folder / "ct.json",
        baseline_nifti=folder / "ct.nii.gz",
        followup_mask=None,
        followup_json=None,
        followup_volume_ml=None,
        rater2_mask=None,
        json_out=folder / "measured.json",
        mask_out=folder / "haematoma.nii.gz",
    )
    return json.loads((folder / "measured.json").read_text())


@pytest.mark.parametrize("trap", LONG)
def test_the_volume_of_an_ellipsoid(tmp_path, write_series, trap):
    """Drawn on the acquired slices under the affine that ITK gives them; 4/3 pi abc within 1 %."""
    series = long_series(trap)
    axes = np.array([24.0, 30, 27])
    inside = ellipsoid(places(series), MIDDLE * FLIP + [2, -3, 1], axes, turned(20, 10, 30))
    save(write_series, tmp_path / "dicom", series, np.where(inside, 70, 30))
    convert_scan(tmp_path / "dicom", tmp_path / "ct.nii.gz", tmp_path / "ct.json", 5.0)
    write_mask(tmp_path / "mask.nii.gz", ascending(series, inside), squared_affine(series))
    expected = 4 / 3 * np.pi * axes.prod() / 1000
    assert measure(tmp_path, tmp_path / "mask.nii.gz")["baseline_ml"] == pytest.approx(expected, rel=0.01)
    # On the converted grid, which for uneven slices is another one:
    written, affine = load(tmp_path / "haematoma.nii.gz")
    assert millilitres(written, affine) == pytest.approx(expected, rel=0.01)


@given(
    tilt=st.floats(-30, 30),
    lower=st.sampled_from([2.5, 3.0, 4.0]),
    upper=st.sampled_from([3.0, 4.0, 4.5]),
    shift=st.tuples(*[st.floats(-3, 3)] * 3),
    pixel=st.tuples(st.floats(0.8, 1.1), st.floats(0.8, 1.1)),
    axes=st.tuples(*[st.floats(26, 32)] * 3),
)
@settings(deadline=None, max_examples=40)
def test_volume_does_not_depend_on_how_it_was_scanned(tilt, lower, upper, shift, pixel, axes):
    heights = [*np.arange(-40, 0, lower), *np.arange(0, 41, upper)]
    series = acquisition(heights=heights, spacing=pixel, matrix=(92, 92), **gantry(tilt))
    inside = ellipsoid(places(series), MIDDLE * FLIP + shift, np.array(axes))
    across, down = series["orientation"].reshape(2, 3) * FLIP
    geometry = stack_geometry(series["origins"] * FLIP, across * pixel[1], down * pixel[0], 92, 92, "x")
    assert mask_volume_ml(inside, geometry, True) == pytest.approx(4 / 3 * np.pi * np.prod(axes) / 1000, rel=0.01)


PAPER = {"field_of_view_mm": [112, 112, 160], "matrix": [256, 256, 32]}
WHOLE = {"field_of_view_mm": [224, 224, 160], "matrix": [256, 256, 32]}
DEMO = {"field_of_view_mm": [160, 160, 160], "matrix": [32, 32, 20]}
CENTRE = MIDDLE * FLIP + [11.0, -7, 4]  # of the haematoma; the brain's is MIDDLE
AXES, TURN = np.array([19.0, 24, 21]), turned(15, -20, 35)


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """Convert and measure the bright ellipsoid in a brain of each of the scans, once."""
    from conftest import _write_series

    made = {}

    def make(trap):
        if trap not in made:
            made[trap] = folder = tmp_path_factory.mktemp("patient")
            series = long_series(trap)
            mm = places(series)
            brain, blood = ellipsoid(mm, MIDDLE * FLIP, [46, 50, 52]), ellipsoid(mm, CENTRE, AXES, TURN)
            save(_write_series, folder / "dicom", series, np.select([blood, brain], [80, 30], 30))
            convert_scan(folder / "dicom", folder / "ct.nii.gz", folder / "ct.json", 5.0)
            write_mask(folder / "mask.nii.gz", ascending(series, blood), squared_affine(series))
            measure(folder, folder / "mask.nii.gz")
            ct, affine = load(folder / "ct.nii.gz")
            native_brain = ellipsoid(centres(affine, ct.shape), MIDDLE * FLIP, [46, 50, 52])
            write_volume(folder / "brain.nii.gz", native_brain.transpose(2, 1, 0).astype(np.uint8), affine)
        return made[trap]

    return make


def resampled(patient_folder, out, grid):
    resample_scan(
        patient_folder / "ct.nii.gz",
        patient_folder / "brain.nii.gz",
        patient_folder / "haematoma.nii.gz",
        out / "ct.nii.gz",
        out / "brain.nii.gz",
        out / "haematoma.nii.gz",
        out / "facts.json",
        spline_order=3,
        window_hu=[0, 100],
        **grid,
    )
    return json.loads((out / "facts.json").read_text())


def in_voxels(difference_mm, affine):
    """The largest part of a difference along an axis of a grid, in voxels."""
    return np.abs(np.linalg.solve(affine[:3, :3], difference_mm)).max()


def millilitres(mask, affine):
    return mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000


SCANS_AND_GRIDS = [
    ("all at once", PAPER, "paper"),
    ("uneven, tilted", DEMO, "demo"),
    ("anisotropic", DEMO, "demo"),
    ("rotated", DEMO, "demo"),
]
SLOW = [
    pytest.param(trap, grid, id=f"{trap}, {name}", marks=pytest.mark.slow)
    for trap in LONG
    for grid, name in ((PAPER, "paper"), (WHOLE, "whole"), (DEMO, "demo"))
    if (trap, grid, name) not in SCANS_AND_GRIDS
]


@pytest.mark.parametrize(
    ("trap", "grid"), [*(pytest.param(t, g, id=f"{t}, {n}") for t, g, n in SCANS_AND_GRIDS), *SLOW]
)
def test_ct_and_mask_stay_together_there_and_back(tmp_path, patient, trap, grid):
    """The bright ellipsoid is the mask: both have their middle where it was put, after every stage."""
    folder = patient(trap)
    measured = json.loads((folder / "measured.json").read_text())["baseline_ml"]
    assert measured == pytest.approx(4 / 3 * np.pi * AXES.prod() / 1000, rel=0.01)

    # convert and measure
    ct, affine = load(folder / "ct.nii.gz")
    native, native_affine = load(folder / "haematoma.nii.gz")
    np.testing.assert_array_equal(native_affine, affine)
    assert in_voxels(centroid(ct - 30, affine) - CENTRE, affine) < 0.25
    assert in_voxels(centroid(native, affine) - CENTRE, affine) < 0.25
    assert millilitres(native, affine) == pytest.approx(measured, rel=0.002)

    # resample: above the brain's mean only the ellipsoid is left
    facts = resampled(folder, tmp_path, grid)
    assert facts["haematoma_inside_fraction"] == 1
    grid_ct, grid_affine = load(tmp_path / "ct.nii.gz")
    grid_mask, _ = load(tmp_path / "haematoma.nii.gz")
    assert in_voxels(centroid(grid_ct, grid_affine) - CENTRE, grid_affine) < 0.25
    assert in_voxels(centroid(grid_mask, grid_affine) - CENTRE, grid_affine) < 0.4
    assert millilitres(grid_mask, grid_affine) == pytest.approx(measured, rel=0.005)

    # augment
    augment_patient(
        ct_path=tmp_path / "ct.nii.gz",
        haematoma_path=tmp_path / "haematoma.nii.gz",
        ct_out=tmp_path / "cts.nii.gz",
        haematoma_out=tmp_path / "masks.nii.gz",
        json_out=tmp_path / "copies.json",
        copies=3,
        include_original=True,
        scaling_percent=10.0,
        translation_percent=5.0,
        rotation_deg=5.0,
        seed=3,
        patient="P1",
    )
    cts, masks = load(tmp_path / "cts.nii.gz")[0], load(tmp_path / "masks.nii.gz")[0]
    middle = (grid_affine @ [*(np.array(grid["matrix"]) - 1) / 2, 1])[:3]
    copies = json.loads((tmp_path / "copies.json").read_text())["copies"]
    assert len(copies) == cts.shape[3] == masks.shape[3] == 3
    for copy, drawn in enumerate(copies):
        expected = turned(*drawn["rotation_deg"]) @ (drawn["scaling"] * (CENTRE - middle))
        expected += middle + drawn["translation_mm"]
        assert in_voxels(centroid(cts[..., copy], grid_affine) - expected, grid_affine) < 0.25
        assert in_voxels(centroid(masks[..., copy], grid_affine) - expected, grid_affine) < 0.5
        assert millilitres(masks[..., copy], grid_affine) == pytest.approx(
            measured * np.prod(drawn["scaling"]), rel=0.01
        )

    # back
    back = resample_haematoma(grid_mask.transpose(2, 1, 0) > 0, grid_affine, affine, native.shape[::-1])
    back = back.transpose(2, 1, 0)
    assert in_voxels(centroid(back, affine) - CENTRE, grid_affine) < 0.4
    assert millilitres(back, affine) == pytest.approx(measured, rel=0.02)
    if grid is not DEMO:
        assert 2 * (back * native).sum() / (back.sum() + native.sum()) > 0.95


# How a user of ITK-SNAP draws: on the DICOM series, or on the converted volume.


def read_dicom_series(folder):
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize("on", ["DICOM", "converted"])
@pytest.mark.parametrize(
    ("trap", "suffix"),
    [
        *((trap, ".nii.gz") for trap in TRAPS if trap != "duplicates"),  # ITK reads these as slices of their own
        *((trap, suffix) for trap in ("feet first, tilted", "uneven, tilted") for suffix in (".nrrd", ".mha")),
    ],
)
def test_a_mask_of_itk_marks_the_pixel_that_was_meant(tmp_path, write_series, trap, on, suffix):
    """The user sees one bright pixel, wherever ITK thinks it lies, and marks it; its true place must come out."""
    series = acquisition(**TRAPS[trap])
    hu = np.full((len(series["origins"]), *series["matrix"][::-1]), 30.0)
    chosen = (len(hu) // 2, 5, 21)
    hu[chosen] = 3000
    save(write_series, tmp_path / "dicom", series, hu)
    convert_scan(tmp_path / "dicom", tmp_path / "ct.nii.gz", tmp_path / "ct.json", 5.0)
    image = read_dicom_series(tmp_path / "dicom") if on == "DICOM" else SimpleITK.ReadImage(tmp_path / "ct.nii.gz")
    seen = SimpleITK.GetArrayFromImage(image)
    drawn = SimpleITK.GetImageFromArray((seen == seen.max()).astype(np.uint8))
    assert SimpleITK.GetArrayFromImage(drawn).sum() == 1
    drawn.CopyInformation(image)
    SimpleITK.WriteImage(drawn, str(tmp_path / f"mask{suffix}"))

    geometry = json.loads((tmp_path / "ct.json").read_text())["geometry"]
    mask, acquired = fit_mask(tmp_path / f"mask{suffix}", geometry)
    (found,) = np.argwhere(mask)
    if acquired:
        kept = ascending(series, places(series))
        place = kept[tuple(found)]
        assert np.allclose(place, places(series)[chosen], atol=1e-6)
    else:  # the even grid of an uneven scan: at most half a step beside
        affine = np.array(geometry["affine"])
        place = (affine @ [*found[::-1], 1])[:3]
        assert np.linalg.norm(place - places(series)[chosen]) <= np.linalg.norm(affine[:3, 2]) / 2 + 0.01
    assert acquired == (on == "DICOM" or geometry["even"])
