"""What the width of an AUC's interval means in patients."""

import math
from statistics import NormalDist


def hanley_mcneil_variance(auc, cases, controls):
    """Variance of an AUC from its size and the numbers of patients alone (Hanley and McNeil 1982, Radiology 143:29).

    Parameters
    ----------
    auc : float
        Between 0 and 1.
    cases, controls : float
        Patients with and without expansion; need not be whole.

    Returns
    -------
    float
        At an AUC of one half exactly the variance of the Mann-Whitney statistic without ties.
    """
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (cases - 1) * (q1 - auc**2) + (controls - 1) * (q2 - auc**2)
    return spread / (cases * controls)


def patients_for_width(auc, share, width, confidence=0.95):
    """Smallest number of patients whose AUC interval is expected to be no wider than stated, by Hanley and McNeil.

    Parameters
    ----------
    auc : float
        The AUC to expect; above 0 and below 1.
    share : float
        Share of patients with expansion; above 0 and below 1.
    width : float
        Upper minus lower bound, above 0.
    confidence : float
        Two-sided confidence level.

    Returns
    -------
    int
    """
    if not (0 < auc < 1 and 0 < share < 1 and width > 0):
        raise ValueError(f"AUC {auc}, share {share}, width {width}")

    def wide(patients):
        return interval_width(auc, share * patients, (1 - share) * patients, confidence) > width

    # The width falls with the number of patients: double it until it is narrow enough, then halve the search.
    low, high = 1, 2
    while wide(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if wide(middle) else (low, middle)
    return high


def interval_width(auc, cases, controls, confidence=0.95):
    """Expected width of a normal interval of an AUC, by Hanley and McNeil's variance."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return 2 * z * math.sqrt(max(hanley_mcneil_variance(auc, cases, controls), 0.0))


def precision_of_auc(auc, variance, cases, controls, wanted_width, confidence=0.95):
    """Say what the interval of an AUC is worth in patients.

    Parameters
    ----------
    auc, variance : float
        With DeLong's variance; nan where undefined.
    cases, controls : int
        Patients with and without expansion.
    wanted_width : float
        A width of the interval one would like.
    confidence : float
        Two-sided confidence level.

    Returns
    -------
    dict
        `width` of DeLong's normal interval, before it is cut to [0, 1]; `width_hanley_mcneil`, the one to expect of so
        many patients with this AUC; `patients_of_width`, how many Hanley and McNeil would ask for the achieved width;
        `wanted_width`; `patients_wanted`, how many they would ask for that; `patients_wanted_delong`, the same by
        scaling DeLong's variance with 1 / n. All with the share of expansion of this cohort; None where the AUC or its
        variance is undefined or lies at a limit.
    """
    names = ("width", "width_hanley_mcneil", "patients_of_width", "patients_wanted", "patients_wanted_delong")
    said = dict.fromkeys(names) | {"wanted_width": wanted_width}
    if not (0 < auc < 1 and variance > 0):  # nan compares as False
        return said
    patients = cases + controls
    width = 2 * NormalDist().inv_cdf(0.5 + confidence / 2) * math.sqrt(variance)
    share = cases / patients
    return said | {
        "width": width,
        "width_hanley_mcneil": interval_width(auc, cases, controls, confidence),
        "patients_of_width": patients_for_width(auc, share, width, confidence),
        "patients_wanted": patients_for_width(auc, share, wanted_width, confidence),
        "patients_wanted_delong": math.ceil(patients * (width / wanted_width) ** 2 - 1e-9),
    }
