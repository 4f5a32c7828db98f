# What the network is worth on a scanner it never saw: one candidate, one training without each named scanner.
# In: what `train` takes, the scanners of the training cohort, the candidate's ordinary out-of-fold predictions.
# Out: both predictions of the same patients compared (table, JSON, figure). Costs one training per scanner. Only with a
# scanner_study. The test cohort stays locked.


rule scanner_study_train:
    """Train the candidate of the scanner study without the patients of one scanner, and predict those."""
    input:
        cohort="<results>/cohort/cohort.tsv",
        conversions=expand("<results>/convert/{patient}_baseline.json", patient=study.training),
        copies=expand(
            "<results>/augment/{patient}{part}",
            patient=study.training,
            part=["_ct.nii.gz", "_haematoma.nii.gz", ".json"],
        ),
        scans=expand("<results>/resample/{patient}_{volume}.nii.gz", patient=study.training, volume=["ct", "haematoma"]),
    output:
        weights="<results>/scanner_study_train/scanner{number}/model.safetensors",
        history="<results>/scanner_study_train/scanner{number}/history.tsv",
        predictions="<results>/scanner_study_train/scanner{number}/predictions.tsv",
        roles="<results>/scanner_study_train/scanner{number}/roles.tsv",
    log:
        "<results>/scanner_study_train/scanner{number}.log",
        curve="<results>/scanner_study_train/scanner{number}/curve.png",
        events="<results>/scanner_study_train/scanner{number}/events.out.tfevents",
    benchmark:
        "<results>/scanner_study_train/scanner{number}.benchmark.tsv"
    wildcard_constraints:
        number=r"\d+",
    conda:
        "../../envs/haemex.yaml"
    threads: study.candidate(config["scanner_study"]["candidate"], "training")["threads"]
    resources:
        gpu=1,
        mem_mb=lambda w, attempt: attempt * study.training_mb(config["scanner_study"]["candidate"]),
        runtime=1440,
    params:
        scanner=lambda w: config["scanner_study"]["scanners"][int(w.number) - 1],
        candidate=config["scanner_study"]["candidate"],
        network=study.candidate(config["scanner_study"]["candidate"], "network"),
        training=study.candidate(config["scanner_study"]["candidate"], "training"),
        seed=config["seed"],
        code=code_version("scanner_study_train"),
    script:
        "../scripts/scanner_study_train.py"


rule scanner_study:
    """Compare the predictions for a scanner's patients with and without that scanner among the training."""
    input:
        cohort="<results>/cohort/cohort.tsv",
        conversions=expand("<results>/convert/{patient}_baseline.json", patient=study.training),
        unseen=expand(
            "<results>/scanner_study_train/scanner{number}/{file}.tsv",
            number=range(1, len(config["scanner_study"]["scanners"]) + 1),
            file=["predictions", "roles"],
        ),
        out_of_fold=expand(
            "<results>/train/{candidate}/fold{fold}/{file}.tsv",
            candidate=config["scanner_study"]["candidate"],
            fold=study.folds,
            file=["predictions", "roles"],
        ),
    output:
        table="<results>/scanner_study/scanners.tsv",
        summary="<results>/scanner_study/summary.json",
        figures=expand("<results>/scanner_study/scanners.{kind}", kind=["png", "svg", "pdf"]),
    log:
        "<results>/scanner_study/scanner_study.log",
    benchmark:
        "<results>/scanner_study/scanner_study.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 1500,
        runtime=10,
    params:
        candidate=config["scanner_study"]["candidate"],
        scanners=config["scanner_study"]["scanners"],
        collapsed_dice=config["select"]["collapsed_dice"],
        confidence=config["evaluate"]["confidence"],
        code=code_version("scanner_study"),
    script:
        "../scripts/scanner_study.py"
