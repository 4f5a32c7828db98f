"""One card per patient: what happened, what the network said and why, the outlines, the markers; worst first.

The order: the test cohort before the training cohort; in each, first the patients on whom the network decided wrongly,
the largest distance between outcome (0 or 1) and calibrated probability at the top; then those whose haematoma's
outline failed (`failure` in `dice.tsv`), the lowest Dice coefficient at the top; then all others, again by the distance
between outcome and calibrated probability. Equal ones go by patient. The page prints this order in one sentence.

Of patients of the training cohort the card shows the out-of-fold probability, by the fold model that had not seen them:
the final model has. For the same reason it shows no spread of the fold models, all but one of which have seen them. The
outline and the relevance map are those of the final model nevertheless, and the card says so.
"""

from pathlib import Path

from haemex.calibration import calibrate
from haemex.card_picture import draw_card
from haemex.cohort import read_cohort
from haemex.errors import InputError
from haemex.files import read_json, write_atomically, write_json
from haemex.logs import Progress, announce
from haemex.markers import MARKERS
from haemex.montage import field_box
from haemex.nifti import read_grid, read_mask_on, read_volume
from haemex.tables import read_table

VERDICTS = {
    (1, 1): "Right: expansion, and the network was positive",
    (0, 0): "Right: no expansion, and the network was negative",
    (1, 0): "Wrong: expansion missed",
    (0, 1): "Wrong: false alarm",
}
UNKNOWN = "Outcome not known"


def write_cards(
    *,
    cohort_path,
    predictions_path,
    out_of_fold_path,
    model_path,
    dice_path,
    convert_folder,
    measure_folder,
    predict_folder,
    markers_folder,
    out_folder,
):
    """Write the cards of all patients and their pictures.

    Parameters
    ----------
    cohort_path : path-like
        `cohort/cohort.tsv`.
    predictions_path : path-like
        `predict/predictions.tsv`, by the final model.
    out_of_fold_path : path-like or None
        `select/predictions.tsv`; None where nobody was trained on.
    model_path : path-like
        `final/model/model.json`, for the locked threshold and the calibration.
    dice_path : path-like
        `evaluate/dice.tsv`.
    convert_folder, measure_folder, predict_folder, markers_folder : path-like
        Hold `{patient}_baseline.nii.gz`; `{patient}.json` and `{patient}_haematoma.nii.gz`;
        in `maps/` `{patient}_haematoma.nii.gz`, `{patient}_relevance.nii.gz` and `{patient}_grid.nii.gz`, of which only
        the grid is read; `{patient}.json`.
    out_folder : path-like
        Gets `cards.json`, a list of `make_card` with the `places` of the picture (`haemex.card_picture.draw_card`),
        worst first; and `pictures/{patient}.png`.

    Raises
    ------
    InputError
        A patient is missing from a table, or a mask lies on another grid than its CT.
    """
    members = read_cohort(cohort_path)
    model = read_json(model_path)
    paths = (predictions_path, dice_path, *([out_of_fold_path] if out_of_fold_path else []))
    tables = {path: _by_patient(path) for path in paths}
    out_folder = Path(out_folder)
    pictures_folder = out_folder / "pictures"
    pictures_folder.mkdir(parents=True, exist_ok=True)
    maps_folder = Path(predict_folder) / "maps"
    progress = Progress("cards", len(members))
    cards = []
    for done, member in enumerate(members, start=1):
        patient = member["patient"]
        training = member["cohort"] == "train"
        card = make_card(
            member,
            _row(tables, out_of_fold_path if training else predictions_path, patient),
            _row(tables, dice_path, patient),
            read_json(Path(measure_folder) / f"{patient}.json"),
            read_json(Path(markers_folder) / f"{patient}.json"),
            model["operating_point"]["threshold"],
            model["calibration"],
        )
        hu, affine = read_volume(Path(convert_folder) / f"{patient}_baseline.nii.gz")
        reader, network = (
            read_mask_on(Path(folder) / f"{patient}_haematoma.nii.gz", hu.shape, affine)
            for folder in (measure_folder, maps_folder)
        )
        relevance = read_volume(maps_folder / f"{patient}_relevance.nii.gz")
        shape, grid_affine = read_grid(maps_folder / f"{patient}_grid.nii.gz")
        field = field_box(grid_affine, shape[::-1])
        picture, places = draw_card(hu, affine, reader, network, *relevance, field)
        write_atomically(pictures_folder / f"{patient}.png", picture)
        cards.append(card | places)
        progress.step(done)
    write_json(out_folder / "cards.json", worst_first(cards))
    announce(f"cards: {len(cards)} patients, {sum(card['wrong'] for card in cards)} of them decided wrongly")


def make_card(member, prediction, overlap, measured, markers, threshold, calibration):
    """Collect what one card says; every number as it stands in its table.

    Parameters
    ----------
    member : dict
        Row of `cohort.tsv`.
    prediction : dict
        Row of `predict/predictions.tsv`, of a training patient that of `select/predictions.tsv`.
    overlap : dict
        Row of `dice.tsv`.
    measured : dict
        `measure/{patient}.json`, for the second reader.
    markers : dict
        `markers/{patient}.json`.
    threshold : float
        A probability from which a patient is positive.
    calibration : dict
        For `haemex.calibration.calibrate`.

    Returns
    -------
    dict
        For JSON; None where something is not known. `verdict` in words, `wrong`, and `error`, the distance between
        outcome and calibrated probability; volumes in mL, distances in mm, `growth_percent` of the baseline volume;
        `markers`, one dict per marker: label, read and computed (0, 1 or None), evidence, `differs`.
    """
    training = member["cohort"] == "train"
    outcome, baseline, followup = member["expansion"], member["baseline_ml"], member["followup_ml"]
    grown = None if baseline is None or followup is None else followup - baseline
    # The calibration is the bundle's for both; of test patients the table holds its result, of training patients not.
    calibrated = calibrate(calibration, prediction["logit"]) if training else prediction["calibrated_probability"]
    positive = int(prediction["probability"] >= threshold)
    reference, predicted = overlap["reference_ml"], overlap["predicted_ml"]
    return {
        "patient": member["patient"],
        "cohort": member["cohort"],
        "expansion": outcome,
        "baseline_ml": baseline,
        "followup_ml": followup,
        "growth_ml": grown,
        "growth_percent": 100 * grown / baseline if grown is not None and baseline else None,
        "probability": prediction["probability"],
        "calibrated_probability": calibrated,
        "threshold": threshold,
        "positive": positive,
        "ensemble_probability": None if training else prediction["ensemble_probability"],
        "ensemble_sd": None if training else prediction["ensemble_sd"],
        "verdict": UNKNOWN if outcome is None else VERDICTS[outcome, positive],
        "wrong": outcome is not None and outcome != positive,
        "error": None if outcome is None else abs(outcome - calibrated),
        "manual_ml": reference,
        "network_ml": predicted,
        "difference_ml": predicted - reference,
        "dice": overlap["dice_native"],
        "hd95_mm": overlap["hd95_native_mm"],
        "dice_out_of_fold": overlap["dice_out_of_fold"],
        "failure": overlap["failure"],
        "inside_fraction": overlap["inside_fraction"],
        "rater2_ml": measured["rater2_ml"],
        "rater_dice": measured["rater_dice"],
        "onset_to_ct_h": markers["onset_to_ct_h"],
        "bat_score_read": markers["bat_score_read"],
        "bat_score": markers["bat_score"],
        "markers": [_marker(label, markers["markers"][marker]) for marker, label in MARKERS.items()],
    }


def _marker(label, one):
    """One line of the card's table of markers."""
    read, computed = one["read"], one["present"]
    differs = None not in (read, computed) and read != computed
    return {"label": label, "read": read, "computed": computed, "evidence": one["evidence"], "differs": differs}


def worst_first(cards):
    """Sort cards as the head of this module says.

    Parameters
    ----------
    cards : list of dict
        From `make_card`.

    Returns
    -------
    list of dict
    """

    def badness(card):
        if card["wrong"]:
            group, within = 0, -card["error"]
        elif card["failure"]:
            group, within = 1, card["dice"]
        else:
            group, within = 2, 0.0 if card["error"] is None else -card["error"]
        return card["cohort"] != "test", group, within, card["patient"]

    return sorted(cards, key=badness)


def _by_patient(path):
    return {row["patient"]: row for row in read_table(path)}


def _row(tables, path, patient):
    """A patient's row of a table."""
    if patient not in tables[path]:
        raise InputError(f"patient {patient} is not in it", "run the stage that made it again", path)
    return tables[path][patient]
