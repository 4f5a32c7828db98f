"""Which scanner a patient was scanned with, and a training that has never seen one of them."""

from pathlib import Path

from haemex.errors import InputError
from haemex.files import read_json

# ASSUME: from a single patient of a kind nothing is learnt about that kind.
LEAST_OF_A_KIND = 2


def scanner_name(acquisition):
    """Name a scanner by manufacturer and model, as far as the DICOM says: "GE MEDICAL SYSTEMS Optima CT540".

    Parameters
    ----------
    acquisition : dict
        Of `convert/{patient}_baseline.json`.

    Returns
    -------
    str
        "not recorded" where the DICOM names neither: all of these count as one group.
    """
    names = [str(acquisition[key]).strip() for key in ("manufacturer", "model") if acquisition[key]]
    return " ".join(names) or "not recorded"


def read_scanners(patients, convert_folder):
    """Name the scanner of each patient's baseline CT.

    Parameters
    ----------
    patients : iterable of str
    convert_folder : path-like
        Results of the stage `convert`.

    Returns
    -------
    dict of str to str
        By patient: see `scanner_name`.
    """
    return {
        patient: scanner_name(read_json(Path(convert_folder) / f"{patient}_baseline.json")["acquisition"])
        for patient in patients
    }


def refuse_unknown_scanners(wanted, scanner_of):
    """Refuse the name of a scanner with which nobody was scanned, before anything is trained.

    Parameters
    ----------
    wanted : sequence of str
        `scanner_study.scanners`.
    scanner_of : dict of str to str
        Of each patient of the training cohort.

    Raises
    ------
    InputError
        Lists the scanners there are, with their patients.
    """
    there = sorted(set(scanner_of.values()))
    unknown = [name for name in wanted if name not in there]
    if unknown:
        counts = list(scanner_of.values())
        known = "; ".join(f'"{name}" ({counts.count(name)})' for name in there)
        raise InputError(
            "no patient of the training cohort was scanned with " + ", ".join(f'"{name}"' for name in unknown),
            f"correct `scanner_study.scanners`; the training cohort's scanners, with their patients, are {known}",
        )


def sides_without(scanner, scanner_of, labels):
    """Divide the training cohort: one scanner's patients are left out, all others are trained on.

    Parameters
    ----------
    scanner : str
        A value of `scanner_of`.
    scanner_of : dict of str to str
        Of each patient of the training cohort.
    labels : dict of str to int
        1 if the haematoma expanded, else 0.

    Returns
    -------
    trained, left_out : list of str
        In the order of `scanner_of`.

    Raises
    ------
    InputError
        Fewer than `LEAST_OF_A_KIND` patients with, or without, expansion are left to train on.
    """
    trained = [patient for patient, name in scanner_of.items() if name != scanner]
    left_out = [patient for patient, name in scanner_of.items() if name == scanner]
    expansions = sum(labels[patient] for patient in trained)
    if min(expansions, len(trained) - expansions) < LEAST_OF_A_KIND:
        raise InputError(
            f'without the patients of "{scanner}", {len(trained)} of {len(scanner_of)} are left to train on, '
            f"{expansions} of them with expansion",
            f"take it out of `scanner_study.scanners`: a training needs {LEAST_OF_A_KIND} patients with and "
            f"{LEAST_OF_A_KIND} without expansion at least",
        )
    return trained, left_out
