"""When the model must not answer: one planted reason at a time, and none on a plain scan."""

import numpy as np
import pytest
from test_compartment import ABOVE, BELOW, ball, head

from haemex.abstention import reasons_to_abstain, share_on_face
from haemex.resample import centre_of_mass_mm, network_affine

TISSUE = {"csf_hu": 8.0, "white_matter_hu": 27.0, "noise_hu": 4.0}
MATRIX = (48, 48, 32)


def described(step=5.0, count=34, **taken):
    return {
        "geometry": {"acquired_positions_mm": (step * np.arange(count)).tolist()},
        "series": {"taken": {"label": "3", **taken}},
    }


@pytest.fixture(scope="module")
def plain():
    return head()


def asked(plain, centre=ABOVE["putamen"], radius=14.0, hu=62.0, tissue=TISSUE, description=None, field=(190, 190, 160)):
    brain, affine, _, atlas_of = plain
    haematoma = ball(atlas_of, centre, radius) & brain
    ct = np.where(brain, 30.0, -1000.0)
    ct[haematoma] = hu
    grid = network_affine(centre_of_mass_mm(brain, affine), field, MATRIX)
    return reasons_to_abstain(
        ct, affine, brain, haematoma, grid, MATRIX[::-1], description or described(), {**TISSUE, **tissue}
    )


def test_a_plain_scan_is_answered(plain):
    assert asked(plain) == []
    assert asked(plain, tissue={"csf_hu": None, "white_matter_hu": None}) == [], "not measurable is no reason"
    assert asked(plain, description=described(step=7.4)) == []


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"centre": BELOW["cerebellum"], "radius": 12.0}, "below the tentorium"),
        ({"centre": BELOW["pons"], "radius": 9.0}, "below the tentorium"),
        ({"radius": 0.0}, "found no haematoma"),
        ({"radius": 60.0}, "mL, more than any does"),
        ({"hu": 35.0}, "mean of 35 HU"),
        ({"hu": 130.0}, "mean of 130 HU"),
        ({"tissue": {"white_matter_hu": 55.0}}, "white matter measures 55 HU"),
        ({"tissue": {"csf_hu": 40.0}}, "ventricles measure 40 HU"),
        ({"description": described(step=1.0)}, "1.0 mm apart"),
        ({"description": described(step=10.0)}, "10.0 mm apart"),
        ({"description": described(pinned=True, against="with contrast medium")}, "contrast medium"),
        ({"description": described(pinned=True, against="a reformat")}, "not of the kind wanted: a reformat"),
        ({"centre": (38, 0, 2), "field": (70, 112, 160)}, "cut off by the network's field of view"),
    ],
)
def test_each_reason_is_said_alone(plain, how, words):
    reasons = asked(plain, **how)
    assert len(reasons) == 1 and words in reasons[0], reasons


def test_crumbs_all_over_the_brain_are_no_haematoma(plain):
    brain, affine, _, atlas_of = plain
    grid = network_affine(centre_of_mass_mm(brain, affine), (190, 190, 160), MATRIX)
    crumbs = [ball(atlas_of, centre, 8.0) & brain for centre in ((30, 0, 20), (-30, 10, 20), (20, -40, 20))]
    speck = np.zeros_like(brain)
    speck[17, 60:63, 60:63] = True  # 9 voxels of 20 mm3

    def reasons(haematoma):
        ct = np.where(haematoma, 62.0, 30.0)
        return reasons_to_abstain(ct, affine, brain, haematoma, grid, MATRIX[::-1], described(), TISSUE)

    (said,) = reasons(crumbs[0] | crumbs[1] | crumbs[2])
    assert "scattered: 3 pieces" in said
    assert reasons(speck) == ["the network found no haematoma"]
    assert reasons(crumbs[0] | speck) == [], "a satellite is nothing unusual"


def test_a_haematoma_on_the_last_slice_goes_on_beyond_the_scan(plain):
    brain, affine, _, atlas_of = plain
    haematoma = ball(atlas_of, (30, 0, 55), 16.0) & brain
    cut = int(np.flatnonzero(haematoma.any(axis=(1, 2))).mean()) + 1
    grid = network_affine(centre_of_mass_mm(brain, affine), (190, 190, 200), MATRIX)
    ct = np.where(haematoma, 62.0, 30.0)
    reasons = reasons_to_abstain(
        ct[:cut], affine, brain[:cut], haematoma[:cut], grid, MATRIX[::-1], described(), TISSUE
    )
    assert any("goes on beyond the scan" in reason for reason in reasons), reasons


def test_share_of_the_surface_on_the_fields_face_by_hand():
    # A cube of 4 x 4 x 4 voxels of 1 mm; the field ends behind its last column: one of its six equal faces.
    haematoma = np.zeros((10, 10, 10), bool)
    haematoma[3:7, 3:7, 3:7] = True
    assert share_on_face(haematoma, np.eye(4), np.eye(4), (10, 10, 7)) == pytest.approx(1 / 6)
    assert share_on_face(haematoma, np.eye(4), np.eye(4), (10, 10, 8)) == 0.0
    # Slices of 5 mm: a side face has 4 x 4 x 5 = 80 mm2, top and bottom 16 mm2: 80 of 352 mm2 lie on the field's face.
    thick = np.diag([1.0, 1.0, 5.0, 1.0])
    assert share_on_face(haematoma, thick, thick, (10, 10, 7)) == pytest.approx(80 / 352)
