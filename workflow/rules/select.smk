# The hyperparameters and the operating point, from out-of-fold predictions only.
# In: predictions, roles and histories of every candidate and fold.
# Out: selected.json, the chosen candidate's predictions, the scores of all candidates.


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
        histories=expand(
            "<results>/train/{candidate}/fold{fold}/history.tsv", candidate=study.candidates, fold=study.folds
        ),
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
    resources:
        mem_mb=lambda w, attempt: attempt * 1500,
        runtime=10,
    params:
        candidates=study.candidates,
        criterion=config["select"]["criterion"],
        operating_point=config["select"]["operating_point"],
        min_sensitivity=config["select"]["min_sensitivity"],
        calibration=config["select"]["calibration"],
        collapsed_dice=config["select"]["collapsed_dice"],
        collapsed_fold=config["select"]["collapsed_fold"],
        code=code_version("select"),
    script:
        "../scripts/select.py"
