# The hyperparameters and the operating point, from out-of-fold predictions only.
# In: predictions and roles of every candidate and fold.  Out: selected.json, the chosen predictions, all candidates.


rule select:
    """Choose the candidate, lock the operating point and the calibration."""
    input:
        cohort="<results>/cohort/cohort.tsv",
        predictions=expand(
            "<results>/train/{candidate}/fold{fold}/predictions.tsv",
            candidate=study.candidates,
            fold=study.folds,
        ),
        roles=expand("<results>/train/{candidate}/fold{fold}/roles.tsv", candidate=study.candidates, fold=study.folds),
    output:
        selected="<results>/select/selected.json",
        predictions="<results>/select/predictions.tsv",
        candidates="<results>/select/candidates.tsv",
    log:
        "<results>/select/select.log",
    benchmark:
        "<results>/select/select.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    params:
        candidates=study.candidates,
        criterion=config["select"]["criterion"],
        operating_point=config["select"]["operating_point"],
        min_sensitivity=config["select"]["min_sensitivity"],
        collapsed_dice=config["select"]["collapsed_dice"],
        code=code_version("select"),
    script:
        "../scripts/select.py"
