"""One picture of a haematoma's slices, enlarged, with the voxels that decided each computed marker."""

import io

import numpy as np

from haemex.markers import MARKERS
from haemex.montage import GREY_LEVELS, LINE, MARGIN, WINDOW_HU, outline
from haemex.orientation import radiological_axes, turn, turned_affine

# Okabe and Ito's colours stay apart under colour blindness; in the order of `MARKERS`.
COLOURS = {
    "hypodensity": (86, 180, 233),
    "black_hole": (0, 114, 255),
    "swirl": (240, 228, 66),
    "blend": (0, 200, 140),
    "fluid_level": (230, 130, 190),
    "irregular_shape": (230, 159, 0),
    "heterogeneous_density": (255, 255, 255),
}
OUTLINE = (255, 90, 60)  # of the haematoma, as in the montage
# Several markers often rest on the same voxels: their outlines lie around each other, in this order.
FROM_INSIDE = (
    *("black_hole", "swirl", "hypodensity", "heterogeneous_density"),
    *("irregular_shape", "blend", "fluid_level"),
)
NESTED = FROM_INSIDE[:4]
AROUND_MM = 12.0
TILE_PIXELS, MOST_TILES, ACROSS = 264, 20, 5
GAP = 4


def draw_markers(hu, affine, haematoma, found, title, lines):
    """Draw the slices of a haematoma from foot to head, each as it is and with the deciding voxels outlined.

    Parameters
    ----------
    hu : numpy.ndarray, (z, y, x)
        CT in HU.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm.
    haematoma : numpy.ndarray of bool, (z, y, x)
        Its mask; not empty.
    found : dict
        From `haemex.markers.compute_markers`.
    title : str
        First line.
    lines : dict
        By marker: what to write beside its colour.

    Returns
    -------
    bytes
        PNG, the same for the same input. Patient's right on the left.
    """
    from PIL import Image, ImageDraw, ImageFont

    axes, flipped = radiological_axes(affine)
    voxels = {marker: turn(one["voxels"], axes, flipped) for marker, one in found.items()}
    hu, mask = turn(hu, axes, flipped), turn(haematoma, axes, flipped)
    spacing = np.linalg.norm(turned_affine(affine, axes, flipped, hu.shape)[:3, :3], axis=0)[1::-1]
    box, size = _box(mask, spacing)
    rows, columns = (
        at.start + ((np.arange(n) + 0.5) * (at.stop - at.start) / n).astype(int)
        for at, n in zip(box, size, strict=True)
    )
    shown = _slices(mask, voxels)
    text, large = ImageFont.load_default(14), ImageFont.load_default(20)
    head = MARGIN + 34 + LINE * (len(MARKERS) + 2)
    across = min(ACROSS, len(shown))
    width = max(across * (size[1] + GAP) - GAP, 1040) + 2 * MARGIN
    height = head + -(-len(shown) // across) * (2 * size[0] + 2 * GAP + 10) + MARGIN
    canvas = np.zeros((height, width), np.uint8)
    places = []
    for number, index in enumerate(shown):
        top = head + (number // across) * (2 * size[0] + 2 * GAP + 10)
        left = MARGIN + (number % across) * (size[1] + GAP)
        places.append((top, left))
        grey = _grey(hu[index][box], size)
        canvas[top : top + size[0], left : left + size[1]] = grey
        canvas[top + size[0] + GAP : top + 2 * size[0] + GAP, left : left + size[1]] = grey
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN - 4), title, 255, large)
    for number, marker in enumerate(MARKERS):
        draw.text((MARGIN + 34, MARGIN + 28 + LINE * number), lines[marker], 225, text)
    low, high = WINDOW_HU
    words = f"{_how(shown, mask)}; {low} to {high} HU; patient's right on the left; below each slice, the same with"
    draw.text((MARGIN, MARGIN + 32 + LINE * len(MARKERS)), f"{words} the haematoma and what decided.", 190, text)
    for (top, left), index in zip(places, shown, strict=True):
        draw.text((left + 5, top + 3), str(index + 1), 230, text, stroke_width=2, stroke_fill=0)
    # Grey levels first, then the colours: small files, and every outline in exactly its colour.
    pixels = np.rint(np.arange(256) * ((GREY_LEVELS - 1) / 255)).astype(np.uint8)[np.asarray(image)]
    for number in range(len(MARKERS)):
        top = MARGIN + 34 + LINE * number
        pixels[top : top + 9, MARGIN : MARGIN + 24] = GREY_LEVELS + 1 + number
    for (top, left), index in zip(places, shown, strict=True):
        tile = pixels[top + size[0] + GAP : top + 2 * size[0] + GAP, left : left + size[1]]
        tile[outline(mask[index : index + 1][:, rows][:, :, columns])[0]] = GREY_LEVELS
        _outlines(tile, {marker: part[index][rows][:, columns] for marker, part in voxels.items()})
    picture = Image.fromarray(pixels, mode="P")
    greys = np.repeat(np.rint(np.linspace(0, 255, GREY_LEVELS)).astype(int), 3).tolist()
    picture.putpalette(greys + [part for rgb in (OUTLINE, *COLOURS.values()) for part in rgb])
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=6)
    return file.getvalue()


def _box(mask, spacing):
    """Rows and columns around the haematoma, and how many pixels they get."""
    box = []
    for axis, mm in zip((1, 2), spacing, strict=True):
        marked = np.flatnonzero(mask.any(axis=(0, 3 - axis)))
        more = round(AROUND_MM / mm)
        box.append(slice(max(int(marked[0]) - more, 0), min(int(marked[-1]) + 1 + more, mask.shape[axis])))
    extent = [(at.stop - at.start) * mm for at, mm in zip(box, spacing, strict=True)]
    return tuple(box), [max(24, round(TILE_PIXELS * part / max(extent))) for part in extent]


def _slices(mask, voxels):
    """Choose the slices to show: all with haematoma; of too many, those that decided most, in their order."""
    marked = np.flatnonzero(mask.any(axis=(1, 2)))
    if len(marked) <= MOST_TILES:
        return [int(index) for index in marked]
    decided = sum(part.sum(axis=(1, 2)) for part in voxels.values())[marked]
    areas = mask.sum(axis=(1, 2))[marked]
    best = sorted(range(len(marked)), key=lambda number: (-int(decided[number]), -int(areas[number]), number))
    return sorted(int(marked[number]) for number in best[:MOST_TILES])


def _how(shown, mask):
    """Say which slices are shown."""
    count = int(mask.any(axis=(1, 2)).sum())
    if len(shown) == count:
        return f"All {count} slices with haematoma, from foot to head" if count > 1 else "The slice with haematoma"
    return f"{len(shown)} of {count} slices with haematoma, from foot to head"


def _grey(image_hu, size):
    """Window a slice and enlarge it, uint8 0 to 255."""
    from PIL import Image

    low, high = WINDOW_HU
    grey = np.clip((image_hu - low) * (255.0 / (high - low)), 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize(size[::-1], Image.Resampling.BILINEAR))


def _outlines(tile, parts):
    """Draw the outline of each marker's part, around those it coincides with."""
    from scipy import ndimage

    drawn = np.zeros(tile.shape, bool)
    for marker in FROM_INSIDE:
        part = parts[marker]
        if not part.any():
            continue
        for _ in NESTED if marker in NESTED else ():
            if (drawn & _edge(part)).any():
                part = ndimage.binary_dilation(part, iterations=2)
        line = _edge(part)
        tile[line] = GREY_LEVELS + 1 + list(MARKERS).index(marker)
        drawn |= line


def _edge(part):
    """Outermost two pixels of a part."""
    from scipy import ndimage

    return part & ~ndimage.binary_erosion(part, iterations=2, border_value=1)
