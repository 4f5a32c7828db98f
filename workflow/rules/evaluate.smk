# The locked model against the NCCT markers and the volume and BAT models, on the test cohort; tables and figures.
# In: predictions, labels, manual masks, computed markers, the model bundle; roles of every training, if there was one.
# Out: Table 2, segmentation, precision, subgroups, other labels, decision curve, agreement of readers and of reader and
# computer, acquisition, the proof that nothing leaked, all figures.


rule evaluate:
    """Refuse leaks, then evaluate the locked model on the test cohort and draw the figures."""
    input:
        table=ancient(study.table),
        cohort="<results>/cohort/cohort.tsv",
        flow="<results>/table1/flow.json",
        predictions="<results>/predict/predictions.tsv",
        maps="<results>/predict/maps",
        model=study.of_model(
            [
                "<results>/final/model/model.json",
                "<results>/final/model/comparators.json",
                "<results>/final/model/model.safetensors",
                *expand("<results>/final/model/fold{fold}.safetensors", fold=study.folds),
            ]
        ),
        selected=study.of_training(["<results>/select/selected.json"]),
        out_of_fold=study.of_training(["<results>/select/predictions.tsv"]),
        final_roles=study.of_training(["<results>/final/roles.tsv"]),
        final_history=study.of_training(["<results>/final/history.tsv"]),
        roles=expand("<results>/train/{candidate}/fold{fold}/roles.tsv", candidate=study.candidates, fold=study.folds),
        histories=expand(
            "<results>/train/{candidate}/fold{fold}/history.tsv", candidate=study.candidates, fold=study.folds
        ),
        measured=expand(
            "<results>/measure/{patient}{part}", patient=study.patients, part=[".json", "_haematoma.nii.gz"]
        ),
        converted=expand(
            "<results>/convert/{patient}_baseline{part}", patient=study.patients, part=[".json", ".nii.gz"]
        ),
        resampled=expand(
            "<results>/resample/{patient}{part}", patient=study.patients, part=[".json", "_haematoma.nii.gz"]
        ),
        markers=expand("<results>/markers/{patient}.json", patient=study.patients),
    output:
        table2="<results>/evaluate/table2.tsv",
        scores="<results>/evaluate/scores.tsv",
        dice="<results>/evaluate/dice.tsv",
        precision="<results>/evaluate/precision.tsv",
        subgroups="<results>/evaluate/subgroups.tsv",
        label_sensitivity="<results>/evaluate/label_sensitivity.tsv",
        decision_curve="<results>/evaluate/decision_curve.tsv",
        agreement="<results>/evaluate/agreement.tsv",
        marker_agreement="<results>/evaluate/marker_agreement.tsv",
        marker_disagreements="<results>/evaluate/marker_disagreements.tsv",
        acquisition="<results>/evaluate/acquisition.tsv",
        leaks="<results>/evaluate/leaks.tsv",
        summary="<results>/evaluate/summary.json",
        figures=expand(
            "<results>/evaluate/{figure}.{kind}",
            figure=[
                "flow",
                *study.of_training(("training",)),
                "dice",
                "volumes",
                "overlays",
                "roc",
                "subgroups",
                "probability",
                "calibration",
                "decision_curve",
            ],
            kind=["png", "svg", "pdf"],
        ),
    log:
        "<results>/evaluate/evaluate.log",
    benchmark:
        "<results>/evaluate/evaluate.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 3000,
        runtime=60,
    params:
        table=study.table_digest(),
        external=study.external,
        confidence=config["evaluate"]["confidence"],
        bat_cut=config["evaluate"]["bat_cut"],
        overlays=config["evaluate"]["overlays"],
        operating_point=config["select"]["operating_point"],
        min_sensitivity=config["select"]["min_sensitivity"],
        expansion=config["expansion"],
        seed=config["seed"],
        code=code_version("evaluate"),
    script:
        "../scripts/evaluate.py"
