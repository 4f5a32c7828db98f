"""The proof that nothing leaked: who took part in which training, and where every threshold comes from.

What is stored is never trusted: roles are compared patient by patient, thresholds and calibration computed once more.
A study that fails is refused; one that passes gets a table of what was compared.
"""

import math

import numpy as np

from haemex.calibration import calibrate, calibration_in_words, read_calibration
from haemex.calibration_fit import fit_calibration
from haemex.cohort import refuse_doubled_scans
from haemex.comparators import same_comparators
from haemex.errors import InputError
from haemex.statistics import sensitivity_threshold, youden_threshold


def passed(check, compared):
    """Make a line of `leaks.tsv` for a check that was passed: what was checked, and what was compared."""
    return {"check": check, "compared": compared, "verdict": "passed"}


def check_roles(rows, trainings, final_roles, out_of_fold, measured):
    """Refuse a study in which a patient stands on two sides; else say what was compared.

    Parameters
    ----------
    rows : list of dict
        Patients with `patient`, `cohort`, `fold` and `expansion`.
    trainings : dict of str to list of dict
        Rows of `roles.tsv` (patient, copy, role) of each training of the cross-validation, by "candidate/fold<k>".
    final_roles : list of dict
        The same of the final model.
    out_of_fold : list of dict
        Rows of `select/predictions.tsv`, with `patient`, `fold` and `expansion`.
    measured : dict of str to dict
        `measure/{patient}.json` by patient, with `pixel_digest`.

    Returns
    -------
    list of dict
        check, compared, verdict: the proof, for `leaks.tsv`.

    Raises
    ------
    InputError
        Names the patient and both sides.
    """
    again = "delete the results of this study and train again; if it happens again, report it as a fault of haemex"
    training = {row["patient"]: row for row in rows if row["cohort"] == "train"}
    test = {row["patient"] for row in rows if row["cohort"] == "test"}
    both = sorted(set(training) & test)
    if both:
        raise InputError(f"patient {both[0]} is in the training and in the test cohort", again)

    doubled = [{"patient": patient, "pixel_digest": measured[patient]["pixel_digest"]} for patient in sorted(measured)]
    refuse_doubled_scans(doubled)
    scans = sum(digest is not None for one in doubled for digest in one["pixel_digest"].values())
    proof = [
        passed("No scan stands under two patients (digests of the pixels)", f"{scans} scans, {len(doubled)} patients")
    ]

    lines, sides = 0, 0
    for name, roles in [*trainings.items(), ("final", final_roles)]:
        seen = {"train": set(), "validation": set()}
        for line in roles:
            if line["role"] not in seen:
                raise InputError(f"training {name} has patient {line['patient']} in the role `{line['role']}`", again)
            seen[line["role"]].add(line["patient"])
            lines += 1
            if line["role"] == "validation" and line["copy"] != "scan":
                raise InputError(
                    f"training {name} was validated on augmented copy {line['copy']} of patient {line['patient']}",
                    again,
                )
        for patient in sorted((seen["train"] | seen["validation"]) - set(training)):
            where = "of the test cohort" if patient in test else "who is in neither cohort"
            raise InputError(f"patient {patient} {where} took part in training {name}", again)
        for patient in sorted(seen["train"] & seen["validation"]):
            raise InputError(f"patient {patient} is on the training and on the validation side of {name}", again)
        sides += len(seen["train"]) + len(seen["validation"])
        for patient in sorted(set(training) - seen["train"] - seen["validation"]):
            raise InputError(f"patient {patient} of the training cohort is missing from training {name}", again)
        if name == "final":
            expected = set()
        else:
            fold = int(name.rpartition("fold")[2])
            expected = {patient for patient, row in training.items() if row["fold"] == fold}
        for patient in sorted(seen["validation"] ^ expected):
            side = "validation" if patient in seen["validation"] else "training"
            raise InputError(f"patient {patient} is on the {side} side of {name}, against the folds", again)
    proof += [
        passed(
            "No patient, augmented copies included, is on the training and the validation side of one training",
            f"{lines} roles of {sides} patients in {len(trainings) + 1} trainings",
        ),
        passed(
            "No patient of the test cohort took part in any training",
            f"{len(test)} test patients against {len(trainings) + 1} trainings",
        ),
        passed(
            "The sides of every training are the folds cut beforehand, and validation saw unaugmented scans only",
            f"{len(trainings)} trainings, {len({row['fold'] for row in training.values()})} folds",
        ),
    ]

    held_out = [row["patient"] for row in out_of_fold]
    for patient in sorted(set(training) - set(held_out)):
        raise InputError(f"patient {patient} of the training cohort has no out-of-fold prediction", again)
    for patient in sorted(set(held_out) - set(training)):
        raise InputError(f"patient {patient} has an out-of-fold prediction but is not in the training cohort", again)
    for patient in sorted({patient for patient in held_out if held_out.count(patient) > 1}):
        raise InputError(f"patient {patient} has more than one out-of-fold prediction", again)
    for row in out_of_fold:
        known = training[row["patient"]]
        if (row["fold"], row["expansion"]) != (known["fold"], known["expansion"]):
            raise InputError(f"the out-of-fold prediction of patient {row['patient']} has another fold or label", again)
    proof.append(
        passed(
            "Every training patient was predicted once, by the model that did not see the patient",
            f"{len(held_out)} out-of-fold predictions of {len(training)} training patients",
        )
    )
    return proof


def check_operating_point(rows, out_of_fold, predictions, selected, model, operating_point, min_sensitivity):
    """Refuse a threshold or a calibration that does not come from the out-of-fold predictions, or was not applied.

    Parameters
    ----------
    rows : list of dict
        Patients with `patient`.
    out_of_fold : list of dict
        `select/predictions.tsv`, with `expansion`, `probability` and `logit`.
    predictions : dict of str to dict
        Rows of `predict/predictions.tsv` by patient.
    selected, model : dict
        `selected.json` and `model.json`.
    operating_point, min_sensitivity : str, float
        The rule.

    Returns
    -------
    list of dict
        check, compared, verdict.

    Raises
    ------
    InputError
        The numbers disagree.
    """
    again = "run the stages select, final and predict again; never set a threshold by hand"
    labels = [row["expansion"] for row in out_of_fold]
    probabilities = [row["probability"] for row in out_of_fold]
    if operating_point == "youden":
        threshold = youden_threshold(labels, probabilities)
    else:
        threshold = sensitivity_threshold(labels, probabilities, min_sensitivity)
    for where, found in (
        ("selected.json", selected["threshold"]),
        ("model.json", model["operating_point"]["threshold"]),
    ):
        if not math.isclose(found, threshold, rel_tol=1e-9):
            raise InputError(
                f"the threshold in {where} is {found:.6g}, but the out-of-fold predictions of the training cohort give "
                f"{threshold:.6g}",
                again,
            )
    stored = {
        "selected.json": read_calibration(selected["calibration"], "selected.json"),
        "model.json": read_calibration(model["calibration"], "model.json"),
    }
    calibration = fit_calibration(stored["selected.json"]["method"], labels, [row["logit"] for row in out_of_fold])
    for where, found in stored.items():
        if not _same_calibration(found, calibration):
            raise InputError(
                f"the calibration in {where} ({_told(found)}) is not the one that the out-of-fold predictions of the "
                f"training cohort give ({_told(calibration)})",
                again,
            )
    return [
        passed(
            f"The threshold is the one the out-of-fold predictions give (rule: {operating_point})",
            f"{threshold:.6g}, recomputed from {len(labels)} training patients; selected.json and model.json agree",
        ),
        passed(
            "The calibration is the one the out-of-fold predictions give",
            f"{_told(calibration)}, recomputed from {len(labels)} training patients",
        ),
        *check_applied(rows, predictions, model["operating_point"]["threshold"], calibration, again),
    ]


def check_applied(rows, predictions, threshold, calibration, again):
    """Refuse predictions to which another threshold or calibration was applied.

    Parameters
    ----------
    rows : list of dict
        Patients with `patient`.
    predictions : dict of str to dict
        Rows of `predict/predictions.tsv` by patient.
    threshold : float
        A probability at or above it is positive.
    calibration : dict
        For `haemex.calibration.calibrate`.
    again : str
        What to do about a refusal.

    Returns
    -------
    list of dict
        check, compared, verdict.

    Raises
    ------
    InputError
        Names the patient.
    """
    for row in rows:
        one = predictions[row["patient"]]
        if one["positive"] != int(one["probability"] >= threshold):
            raise InputError(f"the decision on patient {row['patient']} does not follow from the threshold", again)
        if not math.isclose(
            one["calibrated_probability"], calibrate(calibration, one["logit"]), rel_tol=1e-6, abs_tol=1e-9
        ):
            raise InputError(
                f"the calibrated probability of patient {row['patient']} does not follow from the calibration", again
            )
    return [passed("Every decision and every calibrated probability follows from them", f"{len(rows)} patients")]


def check_comparators(found, expected, test):
    """Refuse comparators in the bundle that the training cohort does not give.

    Parameters
    ----------
    found : dict
        `haemex.comparators.read_comparators`.
    expected : dict
        `haemex.comparators.make_comparators` of the training cohort.
    test : int
        Patients of the test cohort.

    Returns
    -------
    list of dict
        check, compared, verdict.

    Raises
    ------
    InputError
        Names the part that differs.
    """
    for section in ("baselines", "reference"):
        for part in sorted({*found[section], *expected[section]}):
            if not same_comparators(found[section].get(part), expected[section].get(part)):
                raise InputError(
                    f"comparators.json in the model bundle is not what the training cohort gives (`{section}.{part}`)",
                    "run the rule comparators again; never change the file by hand",
                )
    fitted = ", ".join(f"{name} on {one['patients']}" for name, one in expected["baselines"].items())
    patients = expected["reference"]["patients"]
    return [
        passed(
            "The logistic models and their thresholds are fitted on the training cohort",
            f"{fitted} of {patients} training patients, 0 of {test} test patients; comparators.json agrees",
        )
    ]


def _same_calibration(found, expected):
    """Whether two calibrations agree to rounding."""
    return found["method"] == expected["method"] and all(
        np.shape(found[name]) == np.shape(value) and np.allclose(found[name], value, rtol=1e-6, atol=1e-6)
        for name, value in expected.items()
        if name != "method"
    )


def _told(calibration):
    """Give a calibration's numbers in full."""
    if calibration["method"] == "platt":
        return f"intercept {calibration['intercept']:.6g}, slope {calibration['slope']:.6g}"
    return calibration_in_words(calibration)
