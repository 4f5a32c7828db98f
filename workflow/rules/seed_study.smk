# How far AUC and Dice spread with nothing but the seed of the training: one candidate, several seeds, all folds.
# In: what `train` takes; the folds and the augmented copies, which the study's seed made, are the same for every seed.
# Out: scores by seed and fold, their spread (JSON), a figure.  Costs seeds x folds trainings. Only with a seed_study.


rule seed_study_train:
    """Train the candidate of the seed study with one seed without one fold, and predict that fold."""
    input:
        cohort="<results>/cohort/cohort.tsv",
        copies=expand(
            "<results>/augment/{patient}{part}",
            patient=study.training,
            part=["_ct.nii.gz", "_haematoma.nii.gz", ".json"],
        ),
        scans=expand("<results>/resample/{patient}_{volume}.nii.gz", patient=study.training, volume=["ct", "haematoma"]),
    output:
        weights="<results>/seed_study_train/seed{seed}/fold{fold}/model.safetensors",
        history="<results>/seed_study_train/seed{seed}/fold{fold}/history.tsv",
        predictions="<results>/seed_study_train/seed{seed}/fold{fold}/predictions.tsv",
        roles="<results>/seed_study_train/seed{seed}/fold{fold}/roles.tsv",
    log:
        "<results>/seed_study_train/seed{seed}/fold{fold}.log",
        curve="<results>/seed_study_train/seed{seed}/fold{fold}/curve.png",
        events="<results>/seed_study_train/seed{seed}/fold{fold}/events.out.tfevents",
    benchmark:
        "<results>/seed_study_train/seed{seed}/fold{fold}.benchmark.tsv"
    wildcard_constraints:
        seed=r"\d+",
        fold=r"\d+",
    conda:
        "../../envs/haemex.yaml"
    threads: study.candidate(config["seed_study"]["candidate"], "training")["threads"]
    resources:
        gpu=1,
        mem_mb=lambda w, attempt: attempt * study.training_mb(config["seed_study"]["candidate"]),
        runtime=1440,
    params:
        candidate=config["seed_study"]["candidate"],
        network=study.candidate(config["seed_study"]["candidate"], "network"),
        training=study.candidate(config["seed_study"]["candidate"], "training"),
        code=code_version("seed_study_train"),
    script:
        "../scripts/seed_study_train.py"


rule seed_study:
    """Say how far AUC and Dice spread over the seeds."""
    input:
        cohort="<results>/cohort/cohort.tsv",
        predictions=expand(
            "<results>/seed_study_train/seed{seed}/fold{fold}/predictions.tsv",
            seed=config["seed_study"]["seeds"],
            fold=study.folds,
        ),
    output:
        table="<results>/seed_study/seeds.tsv",
        summary="<results>/seed_study/summary.json",
        figures=expand("<results>/seed_study/seeds.{kind}", kind=["png", "svg", "pdf"]),
    log:
        "<results>/seed_study/seed_study.log",
    benchmark:
        "<results>/seed_study/seed_study.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 1500,
        runtime=10,
    params:
        candidate=config["seed_study"]["candidate"],
        seeds=config["seed_study"]["seeds"],
        collapsed_dice=config["select"]["collapsed_dice"],
        confidence=config["evaluate"]["confidence"],
        code=code_version("seed_study"),
    script:
        "../scripts/seed_study.py"
