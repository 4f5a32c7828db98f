"""What becomes of the results under other definitions of expansion, with the network's scores as they are."""

from haemex.cohort import expansion_definitions, is_expansion
from haemex.statistics import count_decisions, delong_auc, wilson_interval

# ASSUME: of the revised definition (Yogendrakumar 2020, Stroke 51:1120) the part that the cohort table can tell: blood
# in ventricles that had none. Growth of blood that was there already, 1 mL or more, is not measured.
REVISED = "new ventricular blood"
COLUMNS = ("definition", "patients", "expansions", "flips", "gained", "lost")
COLUMNS += tuple(f"{name}{end}" for name in ("auc", "sensitivity", "specificity") for end in ("", "_lower", "_upper"))


def label_sensitivity(test, scores, settings, confidence):
    """Relabel the test cohort under every definition and take the network's AUC and decisions anew.

    Nothing is trained, chosen or calibrated again: the network was taught the study's own definition, and its threshold
    stays where the training cohort put it.

    Parameters
    ----------
    test : list of dict
        Patients with `patient`, `baseline_ml`, `followup_ml` (mL) and `expansion`, the study's own label. For the
        revised definition also `intraventricular_haemorrhage` and `followup_intraventricular_haemorrhage` (yes, no, or
        None), where the cohort table has them.
    scores : list of dict
        `haemex.table_two.score_patients` of the same patients in the same order: `cnn` and `positive`.
    settings : dict
        Section `expansion`.
    confidence : float
        Level of the intervals.

    Returns
    -------
    list of dict
        `COLUMNS`, the study's own definition first and, where the ventricles at follow-up are known of anybody, the
        revised one last. `patients`, of whom the definition can be told (all, but for the revised one); `flips`, labels
        that differ from the study's, `gained` those that become expansions, `lost` those that stop being one; AUC with
        DeLong's, sensitivity and specificity with Wilson's interval, nan where a definition leaves one class only.
    """
    table = []
    for name, definition in expansion_definitions(settings).items():
        labels = [int(is_expansion(row["baseline_ml"], row["followup_ml"], **definition)) for row in test]
        table.append(_row(name, labels, test, scores, confidence))
    if any(row.get("followup_intraventricular_haemorrhage") is not None for row in test):
        # Who is left out must not hang on the outcome, so a label that is an expansion anyway is left out as well.
        new_blood = [_new_ventricular_blood(row) for row in test]
        told = [i for i, answer in enumerate(new_blood) if answer is not None]
        labels = [int(test[i]["expansion"] or new_blood[i]) for i in told]
        kept = ([rows[i] for i in told] for rows in (test, scores))
        table.append(_row(f"{table[0]['definition']} or {REVISED}", labels, *kept, confidence))
    return table


def _row(name, labels, test, scores, confidence):
    changes = [new - row["expansion"] for new, row in zip(labels, test, strict=True)]
    tp, fn, tn, fp = count_decisions(labels, [row["positive"] for row in scores])
    area = delong_auc(labels, [row["cnn"] for row in scores], confidence)
    measures = (
        (area.auc, area.lower, area.upper),
        wilson_interval(tp, tp + fn, confidence),
        wilson_interval(tn, tn + fp, confidence),
    )
    counts = (name, len(labels), sum(labels), sum(map(abs, changes)), changes.count(1), changes.count(-1))
    return dict(zip(COLUMNS, (*counts, *(one for triple in measures for one in triple)), strict=True))


def _new_ventricular_blood(row):
    """Whether blood is in ventricles at follow-up that had none at baseline; None where it cannot be told."""
    before, after = row.get("intraventricular_haemorrhage"), row.get("followup_intraventricular_haemorrhage")
    if before or after == 0:  # blood that was there is not new, and none is not new either
        return False
    return None if None in (before, after) else True
