"""What becomes of the results under other definitions of expansion, with the network's scores as they are."""

from haemex.cohort import expansion_definitions, is_expansion
from haemex.statistics import count_decisions, delong_auc, wilson_interval

COLUMNS = ("definition", "patients", "expansions", "flips", "gained", "lost")
COLUMNS += tuple(f"{name}{end}" for name in ("auc", "sensitivity", "specificity") for end in ("", "_lower", "_upper"))


def label_sensitivity(test, scores, settings, confidence):
    """Relabel the test cohort under every definition and take the network's AUC and decisions anew.

    Nothing is trained, chosen or calibrated again: the network was taught the study's own definition, and its threshold
    stays where the training cohort put it.

    Parameters
    ----------
    test : list of dict
        Patients with `patient`, `baseline_ml`, `followup_ml` (mL) and `expansion`, the study's own label.
    scores : list of dict
        `haemex.evaluation.score_patients` of the same patients in the same order: `cnn` and `positive`.
    settings : dict
        Section `expansion`.
    confidence : float
        Level of the intervals.

    Returns
    -------
    list of dict
        `COLUMNS`, the study's own definition first: `flips`, labels that differ from the study's, `gained` those that
        become expansions, `lost` those that stop being one; AUC with DeLong's, sensitivity and specificity with
        Wilson's interval, nan where a definition leaves one class only.
    """
    table = []
    for name, definition in expansion_definitions(settings).items():
        labels = [int(is_expansion(row["baseline_ml"], row["followup_ml"], **definition)) for row in test]
        changes = [new - row["expansion"] for new, row in zip(labels, test, strict=True)]
        tp, fn, tn, fp = count_decisions(labels, [row["positive"] for row in scores])
        area = delong_auc(labels, [row["cnn"] for row in scores], confidence)
        measures = (
            (area.auc, area.lower, area.upper),
            wilson_interval(tp, tp + fn, confidence),
            wilson_interval(tn, tn + fp, confidence),
        )
        counts = (name, len(labels), sum(labels), sum(map(abs, changes)), changes.count(1), changes.count(-1))
        table.append(dict(zip(COLUMNS, (*counts, *(one for triple in measures for one in triple)), strict=True)))
    return table
