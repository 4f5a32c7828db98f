"""One picture of all slices of a scan, from foot to head, with the outlines of masks and field of view."""

import io

import numpy as np

from haemex.orientation import radiological_axes, turn, turned_affine

WINDOW_HU = (0, 80)  # the brain window of the study's figures
MAX_SLICES = 60  # more are thinned out; 5 mm slices never are
MM_PER_PIXEL = 0.95  # of the montage
GREY_LEVELS = 40  # 2 HU each: all an eye can tell apart, and half the bytes of 256
BRAIN, HAEMATOMA, FIELD, FRAME = range(GREY_LEVELS, GREY_LEVELS + 4)
# Sky blue, vermilion and yellow stay apart under colour blindness; the field of view is dashed as well.
COLOURS = ((86, 180, 233), (255, 90, 60), (240, 228, 66), (150, 40, 25))
GAP, MARGIN, LINE = 3, 12, 19  # pixels
AROUND_BRAIN_MM = (35.0, 26.0)  # (row, column): skull and scalp, the nose, the ears; the head holder begins beyond


def field_box(grid_affine, matrix):
    """Say where the network's field of view ends.

    Parameters
    ----------
    grid_affine : array-like, (4, 4)
        Of the network's grid; along the patient's axes (`haemex.resample.network_affine`).
    matrix : sequence of int, (3,)
        (x, y, z).

    Returns
    -------
    low, high : numpy.ndarray, (3,)
        Outer faces, RAS, mm.
    """
    grid_affine = np.asarray(grid_affine, float)
    ends = np.array([np.full(3, -0.5), np.asarray(matrix) - 0.5])
    corners = ends @ grid_affine[:3, :3].T + grid_affine[:3, 3]
    return corners.min(axis=0), corners.max(axis=0)


def inside_box(affine, shape, low, high):
    """Mark the voxels whose centre lies in a box along the patient's axes.

    Parameters
    ----------
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm; may be sheared.
    shape : tuple of int
        (z, y, x).
    low, high : sequence, (3,)
        Ends of the box, RAS, mm.

    Returns
    -------
    numpy.ndarray of bool, (z, y, x)
    """
    inside = np.ones(shape, bool)
    z, y, x = np.ogrid[tuple(slice(size) for size in shape)]
    for axis in range(3):
        # Terms that are constant along an axis stay small, so most of this costs next to nothing.
        terms = [affine[axis, column] * index for column, index in enumerate((x, y, z)) if affine[axis, column] != 0]
        at = sum(terms, affine[axis, 3])
        inside &= (at >= low[axis]) & (at <= high[axis])
    return inside


def outline(mask):
    """Mark the voxels of a mask that have a neighbour outside it in their slice; the picture's edge is no outline."""
    wide = np.pad(mask, ((0, 0), (1, 1), (1, 1)), mode="edge")
    core = wide[:, :-2, 1:-1] & wide[:, 2:, 1:-1] & wide[:, 1:-1, :-2] & wide[:, 1:-1, 2:]
    return mask & ~core


def choose_slices(count, key):
    """Choose the slices to show: all, or every n-th, one of them `key`.

    Parameters
    ----------
    count : int
        Slices of the scan.
    key : int
        The one that has to be shown.

    Returns
    -------
    range
        At most `MAX_SLICES` indices.
    """
    step = -(-count // MAX_SLICES)
    return range(key % step, count, step)


def draw_montage(hu, affine, caption, brain=None, haematoma=None, field=None):
    """Draw every slice of a scan, from foot to head, with outlines.

    Parameters
    ----------
    hu : numpy.ndarray, (z, y, x)
        CT in HU.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm.
    caption : list of str
        Lines above the slices; the first is larger.
    brain, haematoma : numpy.ndarray of bool, (z, y, x), optional
        Masks. A slice with haematoma is framed; what lies outside the field of view is filled.
    field : tuple, optional
        From `field_box`.

    Returns
    -------
    png : bytes
        Palette of 48 colours; the same bytes for the same input.
    places : dict
        `picture_px`, width and height, and `key_tile_px`, left, top, width and height of the slice with the largest
        haematoma, or of the middle one.
    """
    axes, flipped = radiological_axes(affine)
    hu, brain, haematoma = (None if array is None else turn(array, axes, flipped) for array in (hu, brain, haematoma))
    to_ras = turned_affine(affine, axes, flipped, hu.shape)
    spacing_mm = np.linalg.norm(to_ras[:3, :3], axis=0)[1::-1]  # (row, column)
    area_ml = np.zeros(len(hu))
    if haematoma is not None:
        area_ml = haematoma.sum(axis=(1, 2)) * abs(np.linalg.det(affine[:3, :3])) / 1000
    key = int(area_ml.argmax()) if area_ml.any() else len(hu) // 2
    shown = choose_slices(len(hu), key)

    top, bottom, left, right = head_box(hu, spacing_mm, brain, haematoma)
    tile = [
        max(1, round((last - first) * spacing / MM_PER_PIXEL))
        for first, last, spacing in ((top, bottom, spacing_mm[0]), (left, right, spacing_mm[1]))
    ]
    # Nearest voxels: outlines are drawn where the mask is, however the image is smoothed.
    rows = top + ((np.arange(tile[0]) + 0.5) * (bottom - top) / tile[0]).astype(int)
    columns = left + ((np.arange(tile[1]) + 0.5) * (right - left) / tile[1]).astype(int)

    def seen(mask):
        return mask[shown.start :: shown.step][:, rows][:, :, columns]

    colour = np.zeros((len(shown), *tile), np.uint8)
    beyond = None
    if field is not None:
        grid = to_ras.copy()  # of the tiles' pixels
        for column, first, last, size in ((0, left, right, tile[1]), (1, top, bottom, tile[0])):
            grid[:3, 3] += to_ras[:3, column] * (first - 0.5 + (last - first) / size / 2)
            grid[:3, column] *= (last - first) / size
        grid[:3, 3] += to_ras[:3, 2] * shown.start
        grid[:3, 2] *= shown.step
        within = inside_box(grid, colour.shape, *field)
        dashes = np.add.outer(np.arange(tile[0]), np.arange(tile[1])) % 10 < 6
        colour[outline(within) & dashes] = FIELD
        beyond = ~within.any(axis=(1, 2))
    if brain is not None:
        colour[outline(seen(brain))] = BRAIN
    if haematoma is not None:
        drawn = seen(haematoma)
        colour[outline(drawn)] = HAEMATOMA
        if field is not None:
            checks = np.add.outer(np.arange(tile[0]), np.arange(tile[1])) % 3 == 0
            colour[drawn & ~within & checks] = HAEMATOMA
    return _lay_out(
        [_grey(hu[index, top:bottom, left:right], tile) for index in shown],
        colour, shown, area_ml, beyond, [*caption, _how(shown, len(hu))], field is not None, key,
    )  # fmt: skip


def head_box(hu, spacing_mm, brain=None, haematoma=None):
    """Cut away the air around the head, and with a brain mask the head holder too.

    Parameters
    ----------
    hu : numpy.ndarray, (slice, row, column)
        CT in HU.
    spacing_mm : sequence of float
        (row, column).
    brain : numpy.ndarray of bool, optional
        The box ends `AROUND_BRAIN_MM` from it at most.
    haematoma : numpy.ndarray of bool, optional
        Stays in the box, wherever it lies.

    Returns
    -------
    top, bottom, left, right : int
        First row and one behind the last; columns likewise.
    """
    every = max(1, round(2.0 / min(spacing_mm)))
    inside = hu[:, ::every, ::every] > -300
    box = []
    for axis, spacing, around in zip((1, 2), spacing_mm, AROUND_BRAIN_MM, strict=True):
        profile = inside.sum(axis=(0, 3 - axis))
        # A head holder seen from the side is a thin line: less than a tenth of the widest row or column.
        held = np.flatnonzero(profile > 0.1 * profile.max())
        low, high = (held[0] * every, held[-1] * every + 1) if held.size else (0, hu.shape[axis])
        for mask, reach, choose in ((brain, around, (max, min)), (haematoma, 0.0, (min, max))):
            marked = np.flatnonzero(mask.any(axis=(0, 3 - axis))) if mask is not None else []
            if len(marked):
                low = choose[0](low, marked[0] - round(reach / spacing))
                high = choose[1](high, marked[-1] + 1 + round(reach / spacing))
        margin = round(3.0 / spacing)
        box += [int(max(0, low - margin)), int(min(hu.shape[axis], high + margin))]
    return tuple(box)


def _grey(image_hu, size):
    """Window a slice and bring it to `size` (rows, columns) pixels, uint8 0 to 255."""
    from PIL import Image

    low, high = WINDOW_HU
    grey = np.clip((image_hu - low) * (255.0 / (high - low)), 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize(size[::-1], Image.Resampling.BILINEAR))


def _how(shown, count):
    """Say which slices are shown, and how."""
    ordinal = {2: "2nd", 3: "3rd"}.get(shown.step, f"{shown.step}th")
    which = f"All {count} slices" if shown.step == 1 else f"Every {ordinal} of {count} slices"
    low, high = WINDOW_HU
    return f"{which}, from foot to head; {low} to {high} HU; patient's right on the left."


def _lay_out(greys, colour, shown, area_ml, beyond, caption, with_field, key):
    """Put tiles, marks and words together: PNG bytes, and places with that of the slice `key`."""
    from PIL import Image, ImageDraw, ImageFont

    title, text, small = (ImageFont.load_default(size) for size in (20, 14, 12))
    height, width = colour.shape[1:]
    across = max(1, min(len(greys), round((len(greys) * height / width * 1.25) ** 0.5)))
    across = max(across, min(len(greys), -(-900 // (width + GAP))))  # room for the words
    head = 2 * MARGIN + 8 + LINE * (len(caption) + 1)
    canvas = np.zeros(
        (head + -(-len(greys) // across) * (height + GAP) + MARGIN, across * (width + GAP) - GAP + 2 * MARGIN), np.uint8
    )
    places = [
        (head + row * (height + GAP), MARGIN + column * (width + GAP))
        for row, column in (divmod(number, across) for number in range(len(greys)))
    ]
    for (y, x), grey in zip(places, greys, strict=True):
        canvas[y : y + height, x : x + width] = grey
    words = Image.fromarray(canvas)
    draw = ImageDraw.Draw(words)
    draw.text((MARGIN, MARGIN - 4), caption[0], 255, title)
    for number, line in enumerate(caption[1:], start=1):
        draw.text((MARGIN, MARGIN + 6 + LINE * number), line, 215, text)
    legend_y = MARGIN + 6 + LINE * len(caption)
    samples = _legend(draw, legend_y, text, with_field) if colour.any() else []
    for number, ((y, x), index) in enumerate(zip(places, shown, strict=True)):
        draw.text((x + 5, y + 3), str(index + 1), 200, small)
        if area_ml[index]:
            draw.text((x + 5, y + height - 17), _millilitres(area_ml[index]), 255, small)
        if beyond is not None and beyond[number]:
            draw.text((x + width - 5, y + height - 17), "outside the field of view", 200, small, anchor="ra")
        if number % across == 0:
            draw.text((x + 5, y + height // 2), "R", 255, text, anchor="lm")
        if number % across == across - 1 or number == len(greys) - 1:
            draw.text((x + width - 5, y + height // 2), "L", 255, text, anchor="rm")
    indices = np.rint(np.arange(256) * ((GREY_LEVELS - 1) / 255)).astype(np.uint8)[np.asarray(words)]
    for (y, x), overlay, index in zip(places, colour, shown, strict=True):
        patch = indices[y : y + height, x : x + width]
        patch[overlay > 0] = overlay[overlay > 0]
        if area_ml[index]:
            frame = np.ones((height + 4, width + 4), bool)
            frame[2:-2, 2:-2] = False
            indices[y - 2 : y + height + 2, x - 2 : x + width + 2][frame] = FRAME
    for patch, value in samples:
        indices[patch] = value
    image = Image.fromarray(indices, mode="P")
    greys_of = np.repeat(np.rint(np.linspace(0, 255, GREY_LEVELS)).astype(int), 3).tolist()
    image.putpalette(greys_of + [part for rgb in COLOURS for part in rgb])
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=6)
    y, x = places[shown.index(key)]
    return file.getvalue(), {"picture_px": list(image.size), "key_tile_px": [x, y, width, height]}


def _millilitres(volume):
    return f"{volume:.1f} mL" if volume >= 0.05 else "< 0.1 mL"


def _legend(draw, top, font, with_field):
    """Write the names of the outlines; return the places and colours of their samples."""
    names = [("brain mask", BRAIN), ("haematoma mask", HAEMATOMA)]
    if with_field:
        names += [("haematoma outside the field of view", None), ("network's field of view", FIELD)]
    samples, x = [], MARGIN
    for name, colour in names:
        draw.text((x + 34, top), name, 215, font)
        middle = slice(top + 8, top + 10)
        if colour is None:
            samples += [
                ((slice(top + 3, top + 15), slice(x + start, x + start + 1)), HAEMATOMA) for start in range(0, 27, 3)
            ]
        elif colour == FIELD:
            samples += [((middle, slice(x + start, x + start + 6)), colour) for start in range(0, 27, 10)]
        else:
            samples.append(((middle, slice(x, x + 26)), colour))
        x += 34 + round(draw.textlength(name, font)) + 28
    return samples
