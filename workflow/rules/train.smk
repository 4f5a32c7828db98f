# Cross-validation: one training per candidate and fold.
# In: labels and folds, augmented copies (training side), unaugmented scans (validation side), training cohort only.
# Out: weights, history, out-of-fold predictions, and who stood on which side (roles.tsv).


rule train:
    """Train one candidate without one fold, and predict that fold."""
    input:
        cohort="<results>/cohort/cohort.tsv",
        copies=expand(
            "<results>/augment/{patient}{part}",
            patient=study.training,
            part=["_ct.nii.gz", "_haematoma.nii.gz", ".json"],
        ),
        scans=expand("<results>/resample/{patient}_{volume}.nii.gz", patient=study.training, volume=["ct", "haematoma"]),
    output:
        weights="<results>/train/{candidate}/fold{fold}/model.safetensors",
        history="<results>/train/{candidate}/fold{fold}/history.tsv",
        predictions="<results>/train/{candidate}/fold{fold}/predictions.tsv",
        roles="<results>/train/{candidate}/fold{fold}/roles.tsv",
    log:
        "<results>/train/{candidate}/fold{fold}.log",
        curve="<results>/train/{candidate}/fold{fold}/curve.png",
        events="<results>/train/{candidate}/fold{fold}/events.out.tfevents",
    benchmark:
        "<results>/train/{candidate}/fold{fold}.benchmark.tsv"
    wildcard_constraints:
        candidate="[A-Za-z0-9_.-]+",
        fold=r"\d+",
    conda:
        "../../envs/haemex.yaml"
    threads: lambda w: study.candidate(w.candidate, "training")["threads"]
    resources:
        gpu=1,
        mem_mb=lambda w, attempt: attempt * study.training_mb(w.candidate),
        runtime=1440,
    params:
        network=lambda w: study.candidate(w.candidate, "network"),
        training=lambda w: study.candidate(w.candidate, "training"),
        seed=config["seed"],
        code=code_version("train"),
    script:
        "../scripts/train.py"
