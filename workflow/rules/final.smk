# The final model, trained on the whole training cohort with the chosen hyperparameters.
# In: the choice, labels, all augmented copies, weights of the cross-validation.
# Out: the model bundle, all that another centre needs: the final model, the chosen candidate's fold models, and the
# logistic models that the network is compared with (a rule apart: a changed clinical value trains nothing).


rule final:
    """Train the final model and pack its bundle."""
    input:
        cohort="<results>/cohort/cohort.tsv",
        selected="<results>/select/selected.json",
        copies=expand(
            "<results>/augment/{patient}{part}",
            patient=study.training,
            part=["_ct.nii.gz", "_haematoma.nii.gz", ".json"],
        ),
        # Of every candidate: which one is chosen is not known before `select` has run.
        fold_weights=expand(
            "<results>/train/{candidate}/fold{fold}/model.safetensors", candidate=study.candidates, fold=study.folds
        ),
    output:
        weights="<results>/final/model/model.safetensors",
        ensemble=expand("<results>/final/model/fold{fold}.safetensors", fold=study.folds),
        card="<results>/final/model/model.json",
        history="<results>/final/history.tsv",
        roles="<results>/final/roles.tsv",
    log:
        "<results>/final/final.log",
        curve="<results>/final/curve.png",
        events="<results>/final/events.out.tfevents",
    benchmark:
        "<results>/final/final.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    threads: config["training"]["threads"]
    resources:
        gpu=1,
        mem_mb=lambda w, attempt: attempt * study.training_mb(*study.candidates),
        runtime=1440,
    params:
        candidates={
            name: {section: study.candidate(name, section) for section in ("network", "training")}
            for name in study.candidates
        },
        preparation={section: config[section] for section in ("convert", "skullstrip", "resample")},
        operating_point=config["select"]["operating_point"],
        seed=config["seed"],
        code=code_version("final"),
    script:
        "../scripts/final.py"


rule comparators:
    """Fit the volume and the BAT model on the training cohort, sum that cohort up, and add both to the bundle."""
    input:
        table=ancient(study.table),
        cohort="<results>/cohort/cohort.tsv",
        measured=expand("<results>/measure/{patient}.json", patient=study.training),
        converted=expand("<results>/convert/{patient}_baseline.json", patient=study.training),
    output:
        comparators="<results>/final/model/comparators.json",
    log:
        "<results>/final/comparators.log",
    benchmark:
        "<results>/final/comparators.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 1500,
        runtime=10,
    params:
        table=study.table_digest(),
        expansion=config["expansion"],
        operating_point=config["select"]["operating_point"],
        min_sensitivity=config["select"]["min_sensitivity"],
        code=code_version("comparators"),
    script:
        "../scripts/comparators.py"
