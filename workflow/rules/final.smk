# The final model, trained on the whole training cohort with the chosen hyperparameters.
# In: the choice, labels, all augmented copies.  Out: the model bundle, all that another centre needs.


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
    output:
        weights="<results>/final/model/model.safetensors",
        card="<results>/final/model/model.json",
        history="<results>/final/history.tsv",
        roles="<results>/final/roles.tsv",
    log:
        "<results>/final/final.log",
    benchmark:
        "<results>/final/final.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    threads: config["training"]["threads"]
    resources:
        gpu=1,
    params:
        candidates={
            name: {section: study.candidate(name, section) for section in ("network", "training")}
            for name in study.candidates
        },
        resample=config["resample"],
        operating_point=config["select"]["operating_point"],
        seed=config["seed"],
        code=code_version("final"),
    script:
        "../scripts/final.py"
