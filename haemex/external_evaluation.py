"""Evaluation of a locked model at a centre where it was not made.

Nothing is trained, chosen, fitted or calibrated here: network, threshold, calibration and the logistic models it is
compared with all come from the model bundle. What can leak is therefore little, and this module refuses it: weights
that are not the described ones, a patient whose scan the model was trained on, and decisions that do not follow from
the bundle.
"""

from haemex.calibration import calibration_in_words, read_calibration
from haemex.characteristics import describe
from haemex.cohort import refuse_doubled_scans
from haemex.comparators import read_comparators, refuse_training_scans
from haemex.errors import InputError
from haemex.evaluation import read_results, write_evaluation
from haemex.leaks import check_applied, passed
from haemex.model_description import check_weights, read_description


def evaluate_external(
    rows,
    *,
    model_folder,
    predict_folder,
    measure_folder,
    convert_folder,
    resample_folder,
    markers_folder,
    **settings,
):
    """Evaluate a locked model on the patients of another centre, all of whom are the test cohort.

    Parameters
    ----------
    rows : list of dict
        `haemex.clinical.clinical_rows`: one dict per patient who entered.
    model_folder : path-like
        The model bundle, with its `comparators.json`.
    predict_folder, measure_folder, convert_folder, resample_folder, markers_folder : path-like
        See `haemex.evaluation.read_results`.
    **settings
        See `haemex.evaluation.write_evaluation`: out_folder, confidence, bat_cut, expansion, seed. `summary.json` also
        holds `characteristics` (`haemex.characteristics.describe`) of these patients and the `definition` of expansion
        they are judged by; under `reference` the same of the patients the model was trained on, with their number and
        their scanners.

    Raises
    ------
    InputError
        The bundle is damaged or incomplete, a patient belongs to its training cohort or has no prediction, a decision
        does not follow from the bundle, or masks lie on different grids.
    """
    description = read_description(model_folder)
    comparators = read_comparators(model_folder, description)
    results = read_results(
        rows,
        predict_folder=predict_folder,
        measure_folder=measure_folder,
        convert_folder=convert_folder,
        resample_folder=resample_folder,
        markers_folder=markers_folder,
    )
    write_evaluation(
        rows,
        results,
        model=description,
        comparators=comparators,
        leaks=check_external(rows, results, model_folder, description, comparators),
        out_of_fold=[],
        more={
            "external": True,
            "characteristics": describe(rows),
            "definition": settings["expansion"],
            "reference": {
                name: value for name, value in comparators["reference"].items() if name not in ("cuts", "pixel_digests")
            },
        },
        **settings,
    )


def check_external(rows, results, model_folder, description, comparators):
    """Refuse an external evaluation in which anything was fitted to, or trained on, the patients it is about.

    Parameters
    ----------
    rows : list of dict
        Patients with `patient` and `cohort`.
    results : haemex.evaluation.Results
        Of the same patients.
    model_folder : path-like
        The model bundle.
    description, comparators : dict
        `haemex.model_description.read_description` and `haemex.comparators.read_comparators` of it.

    Returns
    -------
    list of dict
        check, compared, verdict: the proof, for `leaks.tsv`.

    Raises
    ------
    InputError
        Names the file or the patient.
    """
    trained = sorted(row["patient"] for row in rows if row["cohort"] != "test")
    if trained:
        raise InputError(
            f"patient {trained[0]} is in a training cohort, which an external evaluation does not have",
            "delete the folder `cohort` of this study's results and run it again",
        )
    files = check_weights(model_folder, description)
    doubled = [{"patient": patient, "pixel_digest": one["pixel_digest"]} for patient, one in results.measured.items()]
    refuse_doubled_scans(doubled)
    compared = refuse_training_scans(results.measured, comparators)
    threshold = description["operating_point"]["threshold"]
    calibration = read_calibration(description["calibration"], model_folder)
    applied = check_applied(
        rows, results.predictions, threshold, calibration, "run the stage predict again; never change its files by hand"
    )
    known = len(comparators["reference"]["pixel_digests"])
    fitted = ", ".join(f"{name} on {one['patients']}" for name, one in comparators["baselines"].items())
    patients = comparators["reference"]["patients"]
    return [
        passed(
            "The weights are those that the bundle was described with (SHA-256)",
            f"{len(files)} files of weights, {files[0][1][:16]}… first",
        ),
        passed(
            "No scan of this cohort is among the scans the model was trained on (digests of the pixels)",
            f"{compared} scans of {len(rows)} patients against {known} scans of {patients} training patients",
        ),
        passed("No scan stands under two patients (digests of the pixels)", f"{compared} scans, {len(rows)} patients"),
        passed(
            f"The threshold is the bundle's, locked where the model was made (rule: "
            f"{description['operating_point']['rule']})",
            f"{threshold:.6g}",
        ),
        passed("The calibration is the bundle's, locked where the model was made", calibration_in_words(calibration)),
        *applied,
        passed(
            "The logistic models and their thresholds are the bundle's, fitted where the model was made",
            f"{fitted} of {patients} training patients, 0 of {len(rows)} patients of this cohort",
        ),
    ]
