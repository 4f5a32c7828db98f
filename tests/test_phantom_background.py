"""Haematomas implanted into head series: exact volumes, blood in brain and nowhere else, no identity."""

import tarfile

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from haemex.errors import InputError
from haemex.nifti import read_volume
from haemex.phantom_background import edge_spread_mm, head_folders, implant, make_background_patient
from haemex.phantom_haematoma import SIGN_BITS
from haemex.segmentation_metrics import dice

PIXEL_MM, TILT_DEG = 1.3, 12.0


def a_head(write_series, folder, seed=0, blur_mm=0.7, closed=True):
    """A head that holds what the search for brain needs: scalp, skull, brain, ventricles, an old infarct, noise.

    Slices of 4 mm below and of 7 mm above, tilted; `closed` False leaves a gap in the skull on every slice.
    """
    rng = np.random.default_rng(seed)
    thickness = np.where(np.arange(26) < 10, 4.0, 7.0)
    heights = -75 + np.cumsum(thickness) - thickness / 2
    tilt = np.radians(TILT_DEG)
    down = np.array([0.0, np.cos(tilt), -np.sin(tilt)])
    origins = np.array([[-103.0, -105.0, 30.0]] * 26) + heights[:, None] / np.cos(tilt) * np.array([0, 0, 1.0])
    index = np.arange(160)
    images = []
    for origin in origins:
        spots = origin + index[:, None, None] * down * PIXEL_MM + index[None, :, None] * np.array([PIXEL_MM, 0, 0])
        x, y, z = np.moveaxis(spots, -1, 0)
        radius = np.sqrt((x / 68) ** 2 + (y / 85) ** 2 + (z / 72) ** 2)
        hu = np.full(radius.shape, -1000.0)
        hu[radius < 1.2] = 30
        hu[(radius < 1.11) & (radius > 1)] = 1100
        if not closed:
            hu[(np.abs(x) < 8) & (y > 0) & (radius < 1.11)] = 30
        hu[radius <= 1] = 33
        hu[np.hypot((np.abs(x) - 12) / 6, (y - 5) / 30) + (np.abs(z - 12) / 14) ** 4 < 1] = 6
        hu[np.hypot(x - 48, y - 30) + (np.abs(z) > 12) * 99 < 14] = 8  # an old infarct on the left
        hu = ndimage.gaussian_filter(hu, blur_mm / PIXEL_MM)
        noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape), 0.6)
        images.append(np.rint(hu + 4 * noise / noise.std() * (radius < 1.2)) + 1024)
    write_series(
        folder, origins, np.clip(images, 0, 4095).astype(np.uint16), (1, 0, 0, *down), (PIXEL_MM, PIXEL_MM),
        SliceThickness=None, edit=lambda i, data: setattr(data, "SliceThickness", float(thickness[i])),
    )  # fmt: skip
    return folder


@pytest.fixture
def head(write_series, tmp_path):
    return a_head(write_series, tmp_path / "heads/first")


def a_patient(name="D001", site="putamen", side=1, volume_ml=14.0, followup_ml=22.0, **row):
    signs = dict.fromkeys(SIGN_BITS, 0)
    fixed = {
        "patient": name, "onset_to_ct_h": 2.0, "intraventricular_haemorrhage": 0, "admission_date": "2015-03-02",
        "age_years": 63, "sex": "f", "ct_to_followup_h": 22.5,
    }  # fmt: skip
    truth = {"site": site, "side": side, "volume_ml": volume_ml, "followup_ml": followup_ml, "second_reading": 1}
    return {"row": fixed | signs | row, "truth": truth | {"heterogeneity": 0.3, "irregularity": 0.2}}


def read_images(folder):
    """HU (z, y, x) and images of a series, sorted along the normal."""
    images = [pydicom.dcmread(path) for path in folder.rglob("*") if path.is_file()]
    images = [image for image in images if "PixelData" in image]
    normal = np.cross(*np.reshape(np.array(images[0].ImageOrientationPatient, float), (2, 3)))
    images.sort(key=lambda image: normal @ np.array(image.ImagePositionPatient, float))
    hu = [image.pixel_array.astype(float) * image.RescaleSlope + image.RescaleIntercept for image in images]
    return np.stack(hu), images


def volume_by_hand(mask, images):
    """ML: each slice reaches half-way to its neighbours, the end slices as far out as in."""
    normal = np.cross(*np.reshape(np.array(images[0].ImageOrientationPatient, float), (2, 3)))
    positions = np.array([normal @ np.array(image.ImagePositionPatient, float) for image in images])
    edges = np.concatenate([[0], (positions[1:] + positions[:-1]) / 2, [0]])
    edges[0], edges[-1] = 2 * positions[0] - edges[1], 2 * positions[-1] - edges[-2]
    return (mask.sum((1, 2)) * np.diff(edges)).sum() * float(images[0].PixelSpacing[0]) ** 2 / 1000


def places(mask, images):
    """Patient coordinates (LPS, mm) of the voxels of a mask."""
    spots = []
    for number, row, column in np.argwhere(mask):
        image = images[number]
        across, down = np.reshape(np.array(image.ImageOrientationPatient, float), (2, 3))
        step = float(image.PixelSpacing[0])
        spots.append(np.array(image.ImagePositionPatient, float) + column * step * across + row * step * down)
    return np.array(spots)


def test_volumes_are_true_and_a_larger_mask_holds_a_smaller(head, tmp_path):
    _, images = read_images(head)
    masks = []
    for volume_ml in (6.0, 15.0, 24.0):
        reported = implant(head, tmp_path / "out", volume_ml, seed=4)
        masks.append(read_volume(tmp_path / "out/mask.nii.gz")[0] > 0)
        assert reported == pytest.approx(volume_by_hand(masks[-1], images), rel=1e-6)
        assert volume_ml <= reported < volume_ml + 7 * PIXEL_MM**2 / 1000 + 1e-6
    assert (masks[0] <= masks[1]).all() and (masks[1] <= masks[2]).all()


def test_blood_lies_in_brain_and_everything_else_is_as_it_was(head, tmp_path):
    before, _ = read_images(head)
    implant(head, tmp_path / "out", 20.0, seed=5)
    hu, _ = read_images(tmp_path / "out/dicom")
    mask = read_volume(tmp_path / "out/mask.nii.gz")[0] > 0
    assert 50 < hu[mask].mean() < 72 and 28 < before[mask].mean() < 36
    assert before[mask].max() < 100  # no bone under it
    away = ndimage.distance_transform_edt(~mask, sampling=(4.0, PIXEL_MM, PIXEL_MM)) > 14
    np.testing.assert_array_equal(hu[away], before[away])
    bone = ndimage.binary_dilation(before > 300, iterations=2)
    np.testing.assert_array_equal(hu[bone], before[bone])
    assert not mask[before < 14].sum() > 0.01 * mask.sum()  # neither ventricle nor infarct
    beyond = np.stack(
        [ndimage.distance_transform_edt(~one, sampling=PIXEL_MM) if one.any() else one * 0 for one in mask]
    )
    rim = (beyond > 1.8) & (beyond < 3.5) & (before > 20) & (before < 46)
    assert np.median(hu[rim]) < np.median(before[rim]) - 1.5  # oedema


def test_the_scan_keeps_its_own_noise(head, tmp_path):
    before, _ = read_images(head)
    implant(head, tmp_path / "out", 40.0, seed=6, signs=set(), heterogeneity=-2)
    hu, _ = read_images(tmp_path / "out/dicom")
    mask = read_volume(tmp_path / "out/mask.nii.gz")[0] > 0
    inner = np.stack([ndimage.binary_erosion(one, iterations=4) for one in mask])
    assert inner.sum() > 500

    def noise(image):
        return (image - ndimage.gaussian_filter(image, (0, 1.5, 1.5)))[inner]

    assert noise(hu).std() == pytest.approx(noise(before).std(), rel=0.15)
    assert np.corrcoef(noise(hu), noise(before))[0, 1] > 0.9


def test_the_blood_is_blurred_as_the_scan_is(write_series, tmp_path):
    widths = {}
    for blur_mm in (0.6, 1.2):
        folder = a_head(write_series, tmp_path / f"blur{blur_mm}", blur_mm=blur_mm)
        hu, _ = read_images(folder)
        widths[blur_mm] = edge_spread_mm(hu, PIXEL_MM)
    assert widths[1.2] > widths[0.6] + 0.2
    assert widths[1.2] == pytest.approx(1.2, abs=0.25)


def test_an_edge_of_known_width_is_measured():
    index = np.arange(300) * 0.5
    radius = np.hypot(index[:, None] - 75, index - 75)
    for sigma in (0.5, 0.8, 1.1):
        ball = np.where(radius < 60, 30.0, -1000.0)
        image = ndimage.gaussian_filter(ball, sigma / 0.5)
        assert edge_spread_mm(np.stack([image] * 9), 0.5) == pytest.approx(sigma, abs=0.12)
    assert edge_spread_mm(np.zeros((9, 50, 50)), 0.5) == 0.6


def test_a_centre_in_patient_coordinates_is_kept(head, tmp_path):
    _, images = read_images(head)
    for wanted in ((-30.0, 10.0, 40.0), (32.0, 25.0, 55.0)):
        implant(head, tmp_path / "out", 5.0, 8, centre_ras_mm=wanted, signs=set())
        centroid = places(read_volume(tmp_path / "out/mask.nii.gz")[0], images).mean(0) * (-1, -1, 1)
        np.testing.assert_allclose(centroid, wanted, atol=4)
    with pytest.raises(InputError, match="room for 0") as refused:
        implant(head, tmp_path / "none", 6.0, 8, centre_ras_mm=(0, 400, 0))
    assert refused.value.file == str(head)
    assert not (tmp_path / "none").exists()


def test_an_implanted_series_has_new_uids_and_no_identity(head, tmp_path, identity):
    implant(head, tmp_path / "a", 8.0, 1)
    implant(head, tmp_path / "b", 9.0, 1)
    _, real = read_images(head)
    old = {str(real[0][name].value) for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    old |= {str(image.SOPInstanceUID) for image in real}
    seen = []
    for name in ("a", "b"):
        _, images = read_images(tmp_path / name / "dicom")
        for image in images:
            text = str(image) + str(image.file_meta)
            assert not [word for word in identity if word in text and word != "1.2.826.0.1.3680043.8.498"]
            assert not any(element.tag.is_private for element in image)
            assert image.SeriesInstanceUID == images[0].SeriesInstanceUID
        seen.append({str(image.SOPInstanceUID) for image in images} | {str(images[0].StudyInstanceUID)})
    assert len(seen[0]) == 27 and not seen[0] & seen[1] and not old & (seen[0] | seen[1])


def test_a_patient_in_a_real_head(head, tmp_path):
    patient = a_patient(irregular_shape=1, hypodensity=1, intraventricular_haemorrhage=1)
    before, _ = read_images(head)
    truth = make_background_patient(patient, head, tmp_path / "out", seed=3)
    home = tmp_path / "out/D001"
    assert {path.name for path in home.iterdir()} == {
        "baseline", "followup", "baseline_mask.nii.gz", "followup_mask.nii.gz", "baseline_mask_rater2.nii.gz",
    }  # fmt: skip
    masks = {}
    for timepoint, wanted in (("baseline", 14.0), ("followup", 22.0)):
        hu, images = read_images(home / timepoint)
        masks[timepoint], affine = read_volume(home / f"{timepoint}_mask.nii.gz")
        name = {"baseline": ("volume_ml", "voxels"), "followup": ("followup_ml", "followup_voxels")}[timepoint]
        assert truth[name[0]] == pytest.approx(volume_by_hand(masks[timepoint], images), rel=1e-6)
        assert truth[name[0]] == pytest.approx(wanted, abs=0.02)
        assert truth[name[1]] == masks[timepoint].sum()
        assert hu[masks[timepoint] > 0].mean() > 50
        np.testing.assert_allclose(
            affine[:3, 3] * (-1, -1, 1), np.array(images[0].ImagePositionPatient, float), atol=1e-4
        )
        assert images[0].PatientID.startswith("HOSP") and "D001" in str(images[0].PatientName)
        assert images[0].PatientAge == "063Y" and images[0].PatientSex == "F"
        assert places(masks[timepoint], images)[:, 0].min() > 0  # on the left
    assert (masks["baseline"] <= masks["followup"]).mean() > 0.999
    second, _ = read_volume(home / "baseline_mask_rater2.nii.gz")
    assert 0.92 < dice(second, masks["baseline"]) < 0.98
    assert set(np.unique(truth["sign_voxels"])) <= {0, 1, 32, 33}
    assert (truth["sign_voxels"] & 1).any()
    stamps = [read_images(home / timepoint)[1][0] for timepoint in ("baseline", "followup")]
    assert stamps[0].PatientID == stamps[1].PatientID and stamps[0].StudyDate < stamps[1].StudyDate
    assert stamps[0].FrameOfReferenceUID != stamps[1].FrameOfReferenceUID
    assert stamps[0].ImagePositionPatient != stamps[1].ImagePositionPatient
    # Blood in the ventricles, none in the infarct.
    hu, _ = read_images(home / "baseline")
    wet = (ndimage.gaussian_filter(before, (0, 1.5, 1.5)) < 12) & (before > -100) & (masks["baseline"] == 0)
    lateral = np.zeros(wet.shape, bool)
    lateral[:, :, np.arange(160) * PIXEL_MM - 103 > 30] = True
    assert (hu[wet & ~lateral] > 40).sum() * PIXEL_MM**2 * 5 > 100
    np.testing.assert_array_equal(hu[wet & lateral & (before < 20)] > 40, False)


def test_noise_at_followup_is_other_noise_of_the_same_strength(head, tmp_path):
    make_background_patient(a_patient(), head, tmp_path / "out", seed=3)
    scans = [read_images(tmp_path / "out/D001" / timepoint)[0] for timepoint in ("baseline", "followup")]
    zone = np.s_[10:14, 65:95, 45:60]  # brain on the right, far from the haematoma
    noise = [(hu - ndimage.gaussian_filter(hu, (0, 2, 2)))[zone] for hu in scans]
    assert noise[1].std() == pytest.approx(noise[0].std(), rel=0.12)
    assert 0.4 < np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1] < 0.8
    air = scans[0] < -900
    np.testing.assert_array_equal(scans[0][air], scans[1][air])


def test_a_patient_is_the_same_every_time_whatever_else_is_made(write_series, tmp_path):
    heads = [a_head(write_series, tmp_path / f"heads/{name}", seed) for seed, name in enumerate("ab")]
    assert head_folders(tmp_path / "heads") == heads and head_folders(heads[1]) == [heads[1]]
    chosen = set()
    for name in ("D001", "D002", "D003", "D004", "D005"):
        truth = make_background_patient(
            a_patient(name, volume_ml=6.0, followup_ml=None), tmp_path / "heads", tmp_path / "one", 2
        )
        chosen.add(truth["head"])
        if name in ("D001", "D005"):
            again = make_background_patient(
                a_patient(name, volume_ml=6.0, followup_ml=None), tmp_path / "heads", tmp_path / "two", 2
            )
            assert again["voxels"] == truth["voxels"] and again["head"] == truth["head"]
            files = sorted(
                path.relative_to(tmp_path / "one") for path in (tmp_path / "one" / name).rglob("*") if path.is_file()
            )
            for file in files:
                assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert chosen == {0, 1}


def test_who_has_no_followup_scan_gets_none(head, tmp_path):
    truth = make_background_patient(a_patient(volume_ml=6.0, followup_ml=None), head, tmp_path, 2)
    assert truth["followup_ml"] is None and "followup_voxels" not in truth
    assert list((tmp_path / "D001/followup").iterdir()) == []
    assert not read_volume(tmp_path / "D001/followup_mask.nii.gz")[0].any()


def test_what_is_no_head_is_refused(write_series, tmp_path):
    with pytest.raises(InputError, match="no DICOM image"):
        head_folders(tmp_path)
    with pytest.raises(InputError, match="no DICOM image"):
        head_folders(tmp_path / "missing")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/notes.txt").write_text("DICM")
    with pytest.raises(InputError, match="no DICOM image"):
        head_folders(tmp_path / "text")
    write_series(tmp_path / "water", range(0, 60, 5), np.full((12, 40, 40), 1024, np.uint16), spacing=(1.0, 1.0))
    with pytest.raises(InputError, match="no brain is found"):
        implant(tmp_path / "water", tmp_path / "out", 5.0, 1)
    write_series(tmp_path / "two/a", range(0, 60, 5), np.full((12, 40, 40), 1024, np.uint16), spacing=(1.0, 1.0))
    write_series(tmp_path / "two/b", range(0, 60, 5), np.full((12, 40, 40), 1024, np.uint16), spacing=(1.0, 1.0))
    with pytest.raises(InputError, match="in 2 series"):
        implant(tmp_path / "two", tmp_path / "out", 5.0, 1)
    flat = np.full((12, 40, 40), 1024, np.uint16)
    write_series(tmp_path / "side", range(0, 60, 5), flat, (0, 1, 0, 0, 0, -1), (1.0, 1.0))
    with pytest.raises(InputError, match=r"not axial|same place"):
        implant(tmp_path / "side", tmp_path / "out", 5.0, 1)
    write_series(tmp_path / "double", [0, 5, 5, 10], flat[:4], spacing=(1.0, 1.0))
    with pytest.raises(InputError, match="same place"):
        implant(tmp_path / "double", tmp_path / "out", 5.0, 1)
    open_skull = a_head(write_series, tmp_path / "open", closed=False)
    with pytest.raises(InputError, match="no brain is found"):
        implant(open_skull, tmp_path / "out", 5.0, 1)


# ----------------------------------------------------------------------------------------------------------- real head


@pytest.fixture(scope="module")
def real_head(request, tmp_path_factory):
    """Unpack the real series (tilted, uneven slices); skipped with the reason that `shared` gives."""
    folder = tmp_path_factory.mktemp("head")
    with tarfile.open(request.getfixturevalue("shared") / "data/head_ge_tilt_uneven.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_a_real_head_takes_a_haematoma(real_head, tmp_path):
    before, images = read_images(real_head)
    patient = a_patient(site="putamen", side=-1, volume_ml=12.0, followup_ml=21.0, black_hole=1, hypodensity=1, swirl=1)
    truth = make_background_patient(patient, real_head, tmp_path, seed=1)
    hu, written = read_images(tmp_path / "D001/baseline")
    mask, _ = read_volume(tmp_path / "D001/baseline_mask.nii.gz")
    assert volume_by_hand(mask, written) == pytest.approx(12.0, abs=0.01) == truth["volume_ml"]
    assert 48 < hu[mask > 0].mean() < 72
    assert before[mask > 0].max() < 120 and 20 < before[mask > 0].mean() < 40
    assert hu.min() == before.min() == -1500  # padding
    np.testing.assert_array_equal(hu[before > 300], before[before > 300])
    spots = places(mask, images)
    assert (spots[:, 0] < 0).all() and abs(spots[:, 0].mean() + 28) < 14  # deep on the right
    # The black hole measures as planted, on the real scan with its noise.
    bits = truth["sign_voxels"]
    k = int((bits & 2 > 0).sum((1, 2)).argmax())
    hole = ndimage.binary_erosion(bits[k] & 2, iterations=2)
    ring = ndimage.binary_dilation(bits[k] & 2, iterations=8) & (mask[k] > 0)
    ring &= ndimage.distance_transform_edt(bits[k] & 2 == 0) > 3
    assert hu[k][ring].mean() - hu[k][hole].mean() > 28


@pytest.mark.slow
@pytest.mark.parametrize("site", ["thalamus", "frontal", "parietal", "temporal", "occipital", "cerebellum"])
def test_every_site_of_a_real_head_has_room(real_head, tmp_path, site):
    before, _ = read_images(real_head)
    truth = make_background_patient(
        a_patient(site=site, volume_ml=10.0, followup_ml=16.0, irregular_shape=1), real_head, tmp_path, seed=2
    )
    mask, _ = read_volume(tmp_path / "D001/baseline_mask.nii.gz")
    assert truth["volume_ml"] == pytest.approx(10.0, abs=0.01)
    assert before[mask > 0].max() < 130
