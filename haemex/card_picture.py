"""The picture of a patient's card: slices through the haematoma, both contours, and where the prediction comes from."""

import io

import numpy as np

from haemex.montage import GAP, LINE, MARGIN, WINDOW_HU, head_box, inside_box, outline
from haemex.orientation import radiological_axes, turn, turned_affine
from haemex.relevance import relevance_on_grid

# Red and green of Figure 3 (`haemex.figures.draw_overlays`): they differ in lightness and dash, too.
READER, NETWORK = (255, 59, 48), (52, 226, 122)
FIELD = (240, 228, 66)  # as in the montage
SLICES = 5
# Pixels, rows and columns. The three views of a slice stand side by side, so that PNG finds what they have in common:
# one below the other they would take three times the bytes.
TILE = 168
GREYS = 27  # 3 HU each
SMOOTH_MM = 0.7  # SD of a Gaussian: noise is half of a file's bytes, and hides what a small tile has to show
MIN_TILE_MM, AROUND_MM = 60.0, 12.0  # a small haematoma is seen with what surrounds it
DASH, SPACE = 9, 6  # pixels along a contour
HEAD = 2 * LINE + MARGIN  # pixels, the words above the tiles
# Where the prediction comes from: one hue, the more the stronger. Violet is neither blood nor brain, is told from grey
# with any colour vision, and keeps apart from both contours.
RELEVANCE, MOST_COVER = (150, 70, 255), 0.72
# Of the patient's maximum: what is weaker leaves the CT as it is, or most pictures would be violet throughout.
LEAST = 0.25
STEPS, COARSE_GREYS = 5, 16  # levels of relevance, and of the grey below it
FIRST = GREYS + 3  # colour of the least relevance on black


def largest_slice(reader, network):
    """Find the slice with the largest area: the reader's, or the network's where the reader drew nothing, or half-way.

    Parameters
    ----------
    reader, network : numpy.ndarray of bool, (slice, row, column)
        Masks of one grid.

    Returns
    -------
    int
    """
    areas = (reader if reader.any() else network).sum(axis=(1, 2))
    return int(areas.argmax()) if areas.any() else len(areas) // 2


def choose_slices(reader, network):
    """Choose the slices of a card: they stand for equal parts of the slices that either mask touches.

    Parameters
    ----------
    reader, network : numpy.ndarray of bool, (slice, row, column)
        Masks of one grid, from foot to head.

    Returns
    -------
    list of int
        `SLICES` indices, fewer only where the scan has fewer, rising: the middles of as many equal parts, of which the
        nearest one is moved to the largest area (the reader's, or the network's where the reader drew nothing). Where
        fewer slices are touched, those next to the largest area are taken too; with no mask at all, the middle of the
        scan.
    """
    count, key = len(reader), largest_slice(reader, network)
    touched = np.flatnonzero((reader | network).any(axis=(1, 2)))
    if len(touched) <= SLICES:
        near = sorted(range(count), key=lambda index: (index not in touched, abs(index - key), index))
        return sorted(near[:SLICES])
    chosen = [int(touched[(2 * part + 1) * len(touched) // (2 * SLICES)]) for part in range(SLICES)]
    nearest = min(range(SLICES), key=lambda place: (abs(chosen[place] - key), place))
    chosen[nearest] = key
    return sorted(chosen)


def choose_square(marked, spacing_mm, around_mm=AROUND_MM):
    """Choose the part of the slices that is shown: a square in mm around the masks.

    Parameters
    ----------
    marked : numpy.ndarray of bool, (row, column)
        All that has to be seen.
    spacing_mm : sequence of float
        (row, column).
    around_mm : float
        Seen around it on every side.

    Returns
    -------
    top, left, height, width : float
        In pixels of the slice, whose first pixel begins at 0; never beyond the slice.
    """
    extents = [size * mm for size, mm in zip(marked.shape, spacing_mm, strict=True)]
    ends = []
    for axis, mm in enumerate(spacing_mm):
        at = np.flatnonzero(marked.any(axis=1 - axis))
        ends.append((at[0] * mm, (at[-1] + 1) * mm) if len(at) else (extents[axis] / 2, extents[axis] / 2))
    side = max(MIN_TILE_MM, *(high - low + 2 * around_mm for low, high in ends))
    side = min(side, *extents)
    starts = [
        min(max((low + high) / 2 - side / 2, 0.0), extent - side)
        for (low, high), extent in zip(ends, extents, strict=True)
    ]
    return tuple(float(value / mm) for value, mm in zip((*starts, side, side), (*spacing_mm, *spacing_mm), strict=True))


def contour_pixels(mask, square, dashed=False):
    """Find the pixels of a tile on which the contour of a mask is drawn, two wide.

    Parameters
    ----------
    mask : numpy.ndarray of bool, (row, column)
        Of the whole slice.
    square : tuple of float
        From `choose_square`.
    dashed : bool
        Whether `SPACE` pixels are left out after every `DASH`.

    Returns
    -------
    numpy.ndarray of bool, (TILE, TILE)
        The contour runs half-way between the centres of voxels inside and outside, as in Figure 3.
    """
    from skimage.measure import find_contours

    drawn = np.zeros((TILE, TILE), bool)
    if not mask.any():
        return drawn
    first = np.array([np.flatnonzero(mask.any(axis=1 - axis))[0] for axis in (0, 1)])
    last = np.array([np.flatnonzero(mask.any(axis=1 - axis))[-1] for axis in (0, 1)])
    part = np.pad(mask[first[0] : last[0] + 1, first[1] : last[1] + 1], 1)
    top, left, height, width = square
    for line in find_contours(part.astype(float), 0.5):
        # From the centres of voxels to the edges of the tile's pixels.
        points = (line + first - 1 + 0.5 - (top, left)) * (TILE / height, TILE / width)
        along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
        at = np.arange(0.0, along[-1], 0.5)
        if dashed:
            at = at[at % (DASH + SPACE) < DASH]
        for shift in (-0.5, 0.5), (0.5, 0.5), (-0.5, -0.5), (0.5, -0.5):
            row, column = (np.floor(np.interp(at, along, points[:, axis]) + shift[axis]).astype(int) for axis in (0, 1))
            held = (row >= 0) & (row < TILE) & (column >= 0) & (column < TILE)
            drawn[row[held], column[held]] = True
    return drawn


def draw_card(hu, affine, reader, network, relevance, relevance_affine, field):
    """Draw slices, each three times: plain, with both contours, with what speaks for expansion.

    First `SLICES` slices through the haematoma, enlarged; then, in one row, the whole head at the slice in which the
    relevance map is strongest, or where nothing is relevant at the one of the largest area.

    Parameters
    ----------
    hu : numpy.ndarray, (z, y, x)
        CT in HU.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm; may be sheared.
    reader, network : numpy.ndarray of bool, (z, y, x)
        The manual and the network's mask on that grid; either may be empty. No manual one (None) for a patient whom
        nobody outlined.
    relevance : numpy.ndarray, (z, y, x)
        0 to 1, on a grid of its own (`haemex.relevance`).
    relevance_affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) of that grid to RAS, mm.
    field : tuple
        The network's field of view, from `haemex.montage.field_box`.

    Returns
    -------
    png : bytes
        Palette picture, the same bytes for the same input. Patient's right on the left.
    places : dict
        `slices` (enlarged ones) and `overview_slice` (of the last row), counted from 1 at the foot; `slice_count`;
        `relevance_found` (whether the map is anywhere above zero) and `relevance_peak_slice` (the slice nearest to its
        maximum, None where there is none or where it lies beyond the scan).
    """
    axes, flipped = radiological_axes(affine)
    read = reader is not None
    reader = reader if read else np.zeros_like(network)
    hu, reader, network = (turn(array, axes, flipped) for array in (hu, reader, network))
    to_ras = turned_affine(affine, axes, flipped, hu.shape)
    spacing = np.linalg.norm(to_ras[:3, :3], axis=0)[1::-1]  # (row, column)
    shown = choose_slices(reader, network)
    close = choose_square((reader | network).any(axis=0), spacing)
    found, peak = _peak(relevance, relevance_affine, to_ras, hu.shape)
    overview = largest_slice(reader, network) if peak is None else peak
    rows = [(index, close) for index in shown] + [(overview, _whole_head(hu, spacing))]
    grids = [_tile_affine(to_ras, square, index) for index, square in rows]
    fields = [inside_box(grid, (1, TILE, TILE), *field) for grid in grids]
    edges = [outline(part)[0] for part in fields]
    pixels = _words(rows, len(hu), read, found, any(edge.any() for edge in edges), [not part.any() for part in fields])
    dashes = np.add.outer(np.arange(TILE), np.arange(TILE)) % 10 < 6
    for number, (index, square) in enumerate(rows):
        grey = _grey(hu[index], square, spacing)
        plain = np.rint(grey * ((GREYS - 1) / 255)).astype(np.uint8)
        contours = plain.copy()
        contours[contour_pixels(reader[index], square)] = GREYS
        contours[contour_pixels(network[index], square, dashed=True)] = GREYS + 1
        part = relevance_on_grid(relevance, relevance_affine, grids[number], (1, TILE, TILE))[0]
        overlay = _overlay(plain, grey, part)
        overlay[edges[number] & dashes] = GREYS + 2
        for column, own in enumerate((plain, contours, overlay)):
            top, left = tile_place(number, column)
            tile = pixels[top : top + TILE, left : left + TILE]
            labels = tile > 0  # slice number and sides were written first
            tile[~labels] = own[~labels]
    return _png(pixels), {
        "slices": [index + 1 for index in shown],
        "overview_slice": overview + 1,
        "slice_count": len(hu),
        "relevance_found": found,
        "relevance_peak_slice": None if peak is None else peak + 1,
    }


def tile_place(number, column):
    """First line and column of pixels of a tile: slice by `number` from the top; plain, contours, relevance."""
    return HEAD + number * (TILE + GAP), MARGIN + column * (TILE + GAP)


def _grey(image_hu, square, spacing_mm):
    """Smooth and window a slice and bring the square to the size of a tile, uint8 0 to 255."""
    from PIL import Image
    from scipy import ndimage

    low, high = WINDOW_HU
    top, left, height, width = square
    # What lies beyond the square enters by the smoothing.
    more = [int(np.ceil(4 * SMOOTH_MM / mm)) for mm in spacing_mm]
    first = [max(int(at) - n, 0) for at, n in zip((top, left), more, strict=True)]
    last = [int(np.ceil(at + size)) + n for at, size, n in zip((top, left), (height, width), more, strict=True)]
    part = image_hu[first[0] : last[0], first[1] : last[1]].astype(np.float32)
    part = ndimage.gaussian_filter(np.clip(part, -100, 200), [SMOOTH_MM / mm for mm in spacing_mm])
    grey = np.rint(np.clip((part - low) * (255.0 / (high - low)), 0, 255)).astype(np.uint8)
    top, left = top - first[0], left - first[1]
    box = (left, top, min(left + width, grey.shape[1]), min(top + height, grey.shape[0]))  # rounding
    return np.asarray(Image.fromarray(grey).resize((TILE, TILE), Image.Resampling.BILINEAR, box=box))


def _tile_affine(to_ras, square, index):
    """Affine of a tile's pixels (column, row, 0) in the slice `index`."""
    top, left, height, width = square
    grid = to_ras.copy()
    for column, first, size in ((0, left, width), (1, top, height)):
        grid[:3, 3] += to_ras[:3, column] * (first - 0.5 + size / TILE / 2)
        grid[:3, column] *= size / TILE
    grid[:3, 3] += to_ras[:3, 2] * index
    return grid


def _whole_head(hu, spacing_mm):
    """The square around the head, as from `choose_square`."""
    top, bottom, left, right = head_box(hu, spacing_mm)
    marked = np.zeros(hu.shape[1:], bool)
    marked[top:bottom, left:right] = True
    return choose_square(marked, spacing_mm, around_mm=0.0)


def _peak(relevance, relevance_affine, to_ras, shape):
    """Say whether anything is relevant, and the slice nearest to the maximum; None where it lies beyond the scan."""
    if not np.any(relevance > 0):
        return False, None
    z, y, x = np.unravel_index(int(np.argmax(relevance)), relevance.shape)
    index = int(np.floor((np.linalg.inv(to_ras) @ relevance_affine @ (x, y, z, 1.0))[2] + 0.5))
    return True, index if 0 <= index < shape[0] else None


def _overlay(plain, grey, relevance):
    """Colour a tile: as it is where there is nothing, else one of the mixtures of `_palette`."""
    level = np.clip(np.floor((relevance - LEAST) * (STEPS / (1 - LEAST)) + 1), 0, STEPS).astype(int)
    coarse = np.rint(grey * ((COARSE_GREYS - 1) / 255)).astype(int)
    return np.where(level == 0, plain, FIRST + (level - 1) * COARSE_GREYS + coarse).astype(np.uint8)


def _palette():
    """All colours: greys, the contours and the field's edge, then each step of relevance over each coarse grey."""
    colours = [(grey, grey, grey) for grey in np.rint(np.linspace(0, 255, GREYS)).astype(int).tolist()]
    colours += [READER, NETWORK, FIELD]
    for step in range(1, STEPS + 1):
        cover = MOST_COVER * step / STEPS
        for grey in np.linspace(0, 255, COARSE_GREYS):
            colours.append(tuple(round((1 - cover) * float(grey) + cover * part) for part in RELEVANCE))
    return [part for colour in colours for part in colour]


def _words(rows, count, with_reader, with_relevance, with_field, beyond):
    """Write what stands around and on the tiles: indices into the palette, 0 elsewhere."""
    from PIL import Image, ImageDraw, ImageFont

    text, small = ImageFont.load_default(15), ImageFont.load_default(13)
    foot = HEAD + len(rows) * (TILE + GAP)
    width = tile_place(0, 3)[1] - GAP + MARGIN
    image = Image.fromarray(np.zeros((foot + LINE * (1 + with_field) + MARGIN // 2, width), np.uint8))
    draw = ImageDraw.Draw(image)
    lines = [MARGIN // 2 + 14, MARGIN // 2 + 14 + LINE]  # on which the words above the tiles stand
    at = [tile_place(0, column)[1] for column in range(3)]
    samples = []

    def line(middle, left, ends, colour):
        samples.extend(((slice(middle - 1, middle + 2), slice(left + a, left + b)), colour) for a, b in ends)

    draw.text((at[0], lines[0]), f"CT, {WINDOW_HU[0]} to {WINDOW_HU[1]} HU", 225, text, anchor="ls")
    draw.text((at[0], lines[1]), "patient's right on the left", 190, small, anchor="ls")
    names = [("network", [(0, 9), (13, 22), (26, 34)], GREYS + 1)]
    if with_reader:
        names.insert(0, ("reader", [(0, 34)], GREYS))
    for base, (name, ends, colour) in zip(lines, names, strict=False):
        line(base - 5, at[1], ends, colour)
        draw.text((at[1] + 42, base), name, 225, text, anchor="ls")
    draw.text((at[2], lines[0]), "Speaks for expansion", 225, text, anchor="ls")
    if with_relevance:
        draw.text((at[2], lines[1]), f"{LEAST:g}", 190, text, anchor="ls")
        x = at[2] + round(draw.textlength(f"{LEAST:g}", text)) + 6
        for step in range(STEPS):
            colour = FIRST + step * COARSE_GREYS + COARSE_GREYS // 2
            samples.append(((slice(lines[1] - 11, lines[1] + 1), slice(x, x + 12)), colour))
            x += 12
        draw.text((x + 6, lines[1]), "1 of max.", 190, text, anchor="ls")
    else:
        draw.text((at[2], lines[1]), "nothing in the image does", 190, small, anchor="ls")
    if with_field:
        line(foot + 9, at[0], [(0, 6), (11, 17), (22, 28)], GREYS + 2)
        draw.text((at[0] + 36, foot + 14), "edge of the network's field of view", 190, text, anchor="ls")
    told = f"Slices are counted from the foot, 1 to {count}. The last row: the whole head."
    draw.text((at[0], foot + 14 + LINE * with_field), told, 190, text, anchor="ls")
    for number, (index, _) in enumerate(rows):
        top, left = tile_place(number, 0)
        draw.text((left + 5, top + 3), str(index + 1), 235, text, stroke_width=2, stroke_fill=7)
        if beyond[number]:
            at_foot = (tile_place(0, 2)[1] + 5, top + TILE - 6)
            draw.text(at_foot, "outside the field of view", 235, small, anchor="ls", stroke_width=2, stroke_fill=7)
        for side, x, anchor in (("R", left + 5, "lm"), ("L", left + TILE - 5, "rm")) if number == 0 else ():
            draw.text((x, top + TILE // 2), side, 235, text, anchor=anchor, stroke_width=2, stroke_fill=7)
    pixels = np.rint(np.arange(256) * ((GREYS - 1) / 255)).astype(np.uint8)[np.asarray(image)]
    for patch, colour in samples:
        pixels[patch] = colour
    return pixels


def _png(pixels):
    """Write indices into the palette as PNG."""
    from PIL import Image

    image = Image.fromarray(pixels, mode="P")
    image.putpalette(_palette())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
