"""Turning of volumes: against nibabel, and every voxel keeps its place."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from haemex.orientation import radiological_axes, turn, turned_affine, turning


@given(
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    sizes=st.tuples(*[st.floats(0.4, 6)] * 3),
    shear=st.floats(-0.35, 0.35),
    wanted=st.tuples(*[st.sampled_from([-1, 1])] * 3),
)
@settings(max_examples=80, deadline=None)
def test_volumes_are_turned_as_nibabel_turns_them(order, signs, sizes, shear, wanted):
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis, (patient, sign, size) in enumerate(zip(order, signs, sizes, strict=True)):
        affine[patient, axis] = sign * size
    affine[order[1], 2] = shear * sizes[2]  # a gantry tilt
    affine[:3, 3] = 3, -5, 7
    volume = np.arange(24).reshape(2, 3, 4)
    axes, flipped = turning(affine, wanted)
    turned = turn(volume, axes, flipped)
    codes = tuple(pair[sign > 0] for pair, sign in zip(("LR", "PA", "IS"), wanted, strict=True))
    transform = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    np.testing.assert_array_equal(turned, apply_orientation(volume.transpose(2, 1, 0), transform).transpose(2, 1, 0))
    # and the affine follows: every voxel keeps its place in the patient
    after = turned_affine(affine, axes, flipped, turned.shape)
    for index in ((0, 0, 0), (1, 2, 3), (0, 1, 2)):
        [at] = np.argwhere(turned == volume[index])
        np.testing.assert_allclose(after @ [*at[::-1], 1], affine @ [*index[::-1], 1], atol=1e-9)


def test_a_volume_in_the_order_of_dicom_is_shown_as_it_is():
    assert radiological_axes(np.diag([-0.5, -0.5, 5.0, 1.0])) == ((0, 1, 2), (False, False, False))
    assert radiological_axes(np.diag([0.5, 0.5, -5.0, 1.0])) == ((0, 1, 2), (True, True, True))
