"""The page about one new patient: the answer first, then what it rests on, then what it must not be used for."""

import base64

from haemex.card_picture import draw_card
from haemex.files import write_atomically
from haemex.markers import MARKERS
from haemex.montage import field_box
from haemex.pages import page_environment
from haemex.printing import number
from haemex.provenance import ROOT

TEMPLATES = ROOT / "workflow" / "report"


def write_page(path, found, hu, affine, haematoma, relevance, grid):
    """Write the page.

    Parameters
    ----------
    path : path-like
        One self-contained HTML file.
    found : dict
        What `haemex.new_patient.predict_new_patient` returns.
    hu : numpy.ndarray, (z, y, x)
        CT in HU.
    affine : numpy.ndarray, (4, 4)
        Voxel index (x, y, z) to RAS, mm.
    haematoma : numpy.ndarray of bool, (z, y, x)
        The network's mask, perhaps empty.
    relevance : (numpy.ndarray, numpy.ndarray)
        The relevance map and its affine.
    grid : (numpy.ndarray, sequence of int)
        The network's grid: affine, and shape (z, y, x).
    """
    grid_affine, shape = grid
    picture, places = draw_card(hu, affine, None, haematoma, *relevance, field_box(grid_affine, shape[::-1]))
    environment = page_environment(TEMPLATES)
    environment.filters["num"] = number
    text = environment.get_template("patient.html.j2").render(
        found=found,
        places=places,
        labels=MARKERS,
        image=f"data:image/png;base64,{base64.b64encode(picture).decode()}",
        answer=answer_in_words(found),
        bars=bars(found),
    )
    write_atomically(path, text.encode())


def answer_in_words(found):
    """Say in one short sentence what the model answers."""
    if found["abstained"]:
        return "No answer"
    # A locked threshold may lie far from one half: "likely" would promise more than it means.
    return "Positive: higher risk of expansion" if found["positive"] else "Negative: lower risk of expansion"


def bars(found):
    """Lay probability, threshold and spread out on a scale from 0 to 100.

    Returns
    -------
    dict or None
        `at`, `cut`, and `low` and `high` of the fold models' mean and SD, or None; None where nothing was answered.
        All are of the uncalibrated probability, on which the threshold was set.
    """
    if found["abstained"]:
        return None
    middle, sd = found["ensemble_probability"], found["ensemble_sd"]
    spread = middle is not None and sd is not None
    return {
        "at": 100 * found["raw_probability"],
        "cut": 100 * found["threshold"],
        "low": 100 * max(middle - sd, 0.0) if spread else None,
        "high": 100 * min(middle + sd, 1.0) if spread else None,
    }
