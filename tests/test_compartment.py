"""Above or below the tentorium: the average brain laid onto brains whose place is known."""

import json

import numpy as np
import pytest
from scipy import ndimage

from haemex.compartment import infratentorial_share, lay_on_atlas
from haemex.convert import convert_scan
from haemex.nifti import read_volume
from haemex.phantom import make_patient
from haemex.phantom_atlas import COARSE_FIRST_MM, COARSE_MM, load_atlas
from haemex.phantom_cohort import draw_patients
from haemex.skullstrip import skullstrip_scan
from haemex.volume import fit_mask

SHAPE = (34, 120, 120)
SPACING = np.array([2.0, 2.0, 5.0])  # x, y, z
# Atlas mm, left, back and up: well above and well below the tentorium.
ABOVE = {"putamen": (27, 0, 2), "thalamus": (14, 15, 8), "temporal": (45, 10, -12), "occipital": (25, 80, 10)}
BELOW = {"cerebellum": (25, 62, -38), "vermis": (0, 65, -30), "pons": (2, 26, -30)}


def rotation(degrees):
    x, y, z = np.radians(degrees)
    about = [
        np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]),
        np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]),
        np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]),
    ]
    return about[2] @ about[1] @ about[0]


def head(scale=(1 / 1.14,) * 3, degrees=(0, 0, 0), shift=(0, 0, 0), flipped=False):
    """An average brain, scaled, turned and shifted, as a mask with its affine; and the map from atlas to RAS mm."""
    to_ras = np.eye(4)
    to_ras[:3, :3] = np.diag([-1, -1, 1]) @ rotation(degrees) @ np.diag(scale)
    to_ras[:3, 3] = shift
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = np.array(shift) - SPACING * (np.array(SHAPE[::-1]) - 1) / 2
    if flipped:  # rows from the back, as DICOM has them
        affine = affine @ np.array([[-1, 0, 0, SHAPE[2] - 1], [0, -1, 0, SHAPE[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE[::-1]), indexing="ij"), -1).reshape(-1, 3)
    atlas = (index @ affine[:3, :3].T + affine[:3, 3] - shift) @ np.linalg.inv(to_ras[:3, :3]).T
    level = load_atlas()["cavity"]
    at = ndimage.map_coordinates(level, ((atlas - COARSE_FIRST_MM) / COARSE_MM).T[::-1], order=1, mode="nearest")
    atlas_of = atlas.reshape(*SHAPE[::-1], 3).transpose(2, 1, 0, 3)
    return at.reshape(SHAPE[::-1]).transpose(2, 1, 0) > 1.0, affine, to_ras, atlas_of


def ball(atlas_of, centre, radius):
    return np.linalg.norm(atlas_of - np.array(centre), axis=-1) < radius


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"degrees": (12, 0, 0)},
        {"degrees": (-15, 4, 6), "shift": (8, -20, 90)},
        {"scale": (0.95, 0.82, 0.9), "flipped": True},
        {"scale": (0.8, 0.9, 0.85), "degrees": (0, -8, -12), "shift": (-30, 15, -400), "flipped": True},
    ],
)
def test_a_brain_of_known_place_is_found_to_a_centimetre_and_its_compartments_told_apart(how):
    brain, affine, to_ras, atlas_of = head(**how)
    place = lay_on_atlas(brain, affine)
    for name, centre in {**ABOVE, **BELOW}.items():
        ras = to_ras[:3, :3] @ centre + to_ras[:3, 3]
        assert place[:3, :3] @ ras + place[:3, 3] == pytest.approx(centre, abs=8.0), name
        share = infratentorial_share(ball(atlas_of, centre, 9.0), affine, place)
        assert (share > 0.7) if name in BELOW else (share < 0.3), (name, share)


@pytest.mark.slow
def test_synthetic_patients_are_told_apart(tmp_path):
    patients = draw_patients({"train": 12, "test": 6, "excluded_each": 6, "matrix": 160}, 83)
    sites = {"infratentorial": [], "supratentorial": []}
    for patient in patients:
        site = patient["row"]["haemorrhage_site"]
        if site in sites and len(sites[site]) < 12:
            name = patient["row"]["patient"]
            make_patient(patient, tmp_path, 160, 83)
            convert_scan(tmp_path / name / "baseline", tmp_path / "ct.nii.gz", tmp_path / "ct.json", 5.0)
            skullstrip_scan(tmp_path / "ct.nii.gz", tmp_path / "brain.nii.gz", tmp_path / "brain.json", 4.0, 500.0)
            brain, affine = read_volume(tmp_path / "brain.nii.gz")
            geometry = json.loads((tmp_path / "ct.json").read_text())["geometry"]
            mask = fit_mask(tmp_path / name / "baseline_mask.nii.gz", geometry)[0] > 0
            sites[site].append(infratentorial_share(mask, affine, lay_on_atlas(brain > 0, affine)))
    assert len(sites["infratentorial"]) >= 6 and len(sites["supratentorial"]) == 12
    assert min(sites["infratentorial"]) > 0.5 > max(sites["supratentorial"]), sites
