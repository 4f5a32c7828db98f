"""Make transformed copies of the training scans.

Supplement, Data augmentation: "3-dimensional image transformation with scaling, translation, and rotation", each scan
"randomly transformed by applying these three transformations using a linear interpolation algorithm. The scaling and
translation were performed between -10% and 10% of the image size and the rotation between -5 and 5 degrees. The size
of the training dataset was increased 10 times".

All copies of a patient come from one job and lie in one file each for CT and haematoma. Each copy is a gzip member of
its own, so training reads one copy without unpacking the others, and any NIfTI reader still sees one 4-D volume.
"""

import gzip
import zlib

import numpy as np
import SimpleITK

from haemex.errors import InputError
from haemex.files import write_atomically, write_json
from haemex.nifti import COMPRESSION, header_bytes, read_volume
from haemex.resample import CT_SLOPE, resample_haematoma

# Jobs run side by side. Set on a filter, it leaves out what makes and copies images: a thread per core, each time.
SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def augment_patient(
    ct_path,
    haematoma_path,
    ct_out,
    haematoma_out,
    json_out,
    copies,
    include_original,
    scaling_percent,
    translation_percent,
    rotation_deg,
    seed,
    patient,
):
    """Write all copies of one training patient.

    A haematoma that a transform moves partly or wholly out of the image is kept so, as the augmented CT shows it;
    `haematoma_voxels` in the JSON counts what is left of it.

    Parameters
    ----------
    ct_path, haematoma_path : path-like
        Normalised CT and haematoma on the network's grid, from `haemex.resample`.
    ct_out, haematoma_out : path-like
        4-D NIfTI, the copy is the fourth axis; CT int16 with slope 2**-10, haematoma uint8. The header is one gzip
        member, each copy another.
    json_out : path-like
        `copies`: the transform of each and its `haematoma_voxels`; `ct_offsets`, `haematoma_offsets`: at which byte of
        the files each copy's member starts.
    copies : int
        Number of copies, the original included.
    include_original : bool
        Whether copy 0 is the scan itself.
    scaling_percent, translation_percent, rotation_deg : float
        Ranges, see `draw_transforms`.
    seed : int
        Seed of the study.
    patient : str
        With the seed and this stage's name it decides the transforms, whatever the order of jobs.

    Raises
    ------
    InputError
        CT and haematoma are not on the same grid.
    """
    ct, affine = read_volume(ct_path)
    haematoma, haematoma_affine = read_volume(haematoma_path)
    if ct.shape != haematoma.shape or not np.array_equal(affine, haematoma_affine):
        raise InputError("CT and haematoma are not on the same grid", "run resample again", haematoma_path)
    field_of_view_mm = np.linalg.norm(affine[:3, :3], axis=0) * ct.shape[::-1]
    rng = np.random.default_rng([seed, zlib.crc32(patient.encode()), zlib.crc32(b"augment")])
    transforms = draw_transforms(
        copies, include_original, scaling_percent, translation_percent, rotation_deg, field_of_view_mm, rng
    )

    ct_volumes, haematoma_volumes = [], []
    for transform in transforms:
        moved = apply_transform(ct, affine, transform)
        ct_volumes.append(np.rint(moved / CT_SLOPE).astype(np.int16))
        haematoma_volumes.append(move_haematoma(haematoma > 0, affine, transform).astype(np.uint8))
    facts = {
        "copies": [
            {**transform, "haematoma_voxels": int(volume.sum())}
            for transform, volume in zip(transforms, haematoma_volumes, strict=True)
        ],
        "ct_offsets": _write_copies(ct_out, ct_volumes, affine, CT_SLOPE),
        "haematoma_offsets": _write_copies(haematoma_out, haematoma_volumes, affine),
    }
    write_json(json_out, facts)


def draw_transforms(
    copies, include_original, scaling_percent, translation_percent, rotation_deg, field_of_view_mm, rng
):
    """Draw the transforms of one patient's copies.

    Parameters
    ----------
    copies : int
        Number of copies, the original included.
    include_original : bool
        Whether copy 0 is the identity.
    scaling_percent : float
        Each axis is scaled by 1 minus to 1 plus this.
    translation_percent : float
        Each axis is shifted by minus to plus this part of the field of view.
    rotation_deg : float
        Turned about each axis by minus to plus this angle.
    field_of_view_mm : sequence of float
        (x, y, z), mm.
    rng : numpy.random.Generator
        Where the numbers come from.

    Returns
    -------
    list of dict
        `scaling`, `translation_mm`, `rotation_deg`, each a list (x, y, z).
    """
    transforms = []
    for copy in range(copies):
        # ASSUME: nine independent uniform numbers; the supplement gives ranges, and does not say whether one factor
        # scales all axes. "Of the image size" is read per axis, for scaling as for translation.
        scaling, translation, rotation = rng.uniform(-1, 1, (3, 3))
        if copy == 0 and include_original:
            scaling = translation = rotation = np.zeros(3)
        transforms.append(
            {
                "scaling": (1 + scaling * scaling_percent / 100).tolist(),
                "translation_mm": (translation * translation_percent / 100 * np.asarray(field_of_view_mm)).tolist(),
                "rotation_deg": (rotation * rotation_deg).tolist(),
            }
        )
    return transforms


def apply_transform(array, affine, transform):
    """Move the content of an image: scale, then turn, then shift it, about the centre of the grid.

    Parameters
    ----------
    array : numpy.ndarray, (z, y, x)
        CT or mask.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm; the transform works in mm, so a turn stays a turn on thick slices.
    transform : dict
        `scaling` along the patient's axes, `rotation_deg` about x, then y, then z (right-handed), `translation_mm`;
        each (x, y, z).

    Returns
    -------
    numpy.ndarray of float32, (z, y, x)
        Linear interpolation; 0 beyond the image.
    """
    # The content goes from p to R S p + t, so the voxel at q takes its value from S^-1 R^T (q - t).
    pull = np.linalg.inv(_rotation(transform["rotation_deg"]) @ np.diag(transform["scaling"]))
    to_mm, to_index = affine[:3, :3], np.linalg.inv(affine[:3, :3])
    pull_index = SimpleITK.AffineTransform(3)
    pull_index.SetMatrix((to_index @ pull @ to_mm).ravel())
    pull_index.SetTranslation(-to_index @ pull @ np.asarray(transform["translation_mm"], float))
    pull_index.SetCenter((np.array(array.shape[::-1]) - 1) / 2)

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array, np.float32))
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetReferenceImage(image)
    resampler.SetTransform(pull_index)
    resampler.SetInterpolator(SimpleITK.sitkLinear)
    resampler.SetDefaultPixelValue(0.0)
    return SimpleITK.GetArrayFromImage(resampler.Execute(image))


def move_haematoma(mask, affine, transform):
    """Move a haematoma as `apply_transform` moves its CT; its volume changes by the scaling and what leaves the image.

    Cut at one half, a haematoma of few voxels would lose its corners: up to a sixth of it on coarse grids.

    Parameters
    ----------
    mask : numpy.ndarray of bool, (z, y, x)
        The haematoma.
    affine, transform
        See `apply_transform`.

    Returns
    -------
    numpy.ndarray of bool, (z, y, x)
        See `haemex.resample.resample_haematoma`.
    """
    # Moved is where the mask's grid lies: what is left is to bring it back to the grid of the image.
    middle = affine[:3, :3] @ ((np.array(mask.shape[::-1]) - 1) / 2) + affine[:3, 3]
    push = _rotation(transform["rotation_deg"]) @ np.diag(transform["scaling"])
    moved = np.array(affine, float)
    moved[:3, :3] = push @ affine[:3, :3]
    moved[:3, 3] = push @ (affine[:3, 3] - middle) + middle + transform["translation_mm"]
    return resample_haematoma(mask, moved, affine, mask.shape)


def _rotation(degrees):
    """Rotation matrix: about x first, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _write_copies(path, volumes, affine, slope=None):
    """Write volumes (z, y, x) as one 4-D NIfTI, a gzip member each; return where each member starts."""
    header = header_bytes((len(volumes), *volumes[0].shape), volumes[0].dtype, affine, slope)
    members = [
        gzip.compress(part, COMPRESSION, mtime=0) for part in (header, *(volume.tobytes() for volume in volumes))
    ]
    write_atomically(path, b"".join(members))
    return np.cumsum([len(member) for member in members[:-1]]).tolist()
