"""Non-contrast CT markers as read by radiologists: their names, the BAT score, the agreement of two readers."""

import math

from haemex.statistics import cohen_kappa

# Column of the cohort table and label of the paper's Table 2, in its order. Criteria: supplemental Table 2.
MARKERS = {
    "hypodensity": "Hypodensities",
    "black_hole": "Black hole sign",
    "swirl": "Swirl sign",
    "blend": "Blend sign",
    "fluid_level": "Fluid level",
    "irregular_shape": "Irregular shape",
    "heterogeneous_density": "Heterogeneous density",
}


def bat_score(blend, hypodensity, onset_to_ct_h):
    """BAT score, 0 to 5: blend sign 1, any hypodensity 2, time from onset to CT under 2.5 h 2.

    Supplemental Table 3; Morotti 2018 (Stroke 49:1163).

    Parameters
    ----------
    blend, hypodensity : {0, 1, None}
    onset_to_ct_h : float or None
        Hours; exactly 2.5 h scores nothing.

    Returns
    -------
    int or None
        None when any of the three is missing.
    """
    if any(_missing(value) for value in (blend, hypodensity, onset_to_ct_h)):
        return None
    return (1 if blend else 0) + (2 if hypodensity else 0) + (2 if onset_to_ct_h < 2.5 else 0)


def agreement(rows, confidence=0.95):
    """Cohen's kappa of each marker that was read twice.

    Paper, "Assessment of the NCCT markers and the BAT score": inter-rater reliability over the whole data set.

    Parameters
    ----------
    rows : list of dict
        Patients with the marker columns and, where a second reading exists, `<marker>_rater2`; None = missing.
    confidence : float
        Two-sided confidence level.

    Returns
    -------
    list of dict
        marker, label, n (patients read twice), kappa, lower, upper (nan where undefined); in the order of `MARKERS`,
        without the markers that nobody read twice.
    """
    table = []
    for marker, label in MARKERS.items():
        pairs = [(row[marker], row.get(f"{marker}_rater2")) for row in rows]
        pairs = [pair for pair in pairs if not any(_missing(value) for value in pair)]
        if pairs:
            kappa = cohen_kappa(*zip(*pairs, strict=True), confidence)
            table.append({"marker": marker, "label": label, "n": len(pairs), "kappa": kappa.estimate})
            table[-1] |= {"lower": kappa.lower, "upper": kappa.upper}
    return table


def _missing(value):
    return value is None or math.isnan(value)
