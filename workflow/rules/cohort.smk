# Who enters, the expansion label, the temporal split, the folds; Table 1.
# In: the cohort table, measured volumes.  Out: cohort.tsv, label_flips.tsv; flow.json, table1.tsv, table1_expansion.tsv.


rule cohort:
    """Apply the eligibility criteria, label expansion, split by admission date, cut the folds."""
    input:
        table=ancient(study.table),
        measured=expand("<results>/measure/{patient}.json", patient=study.patients),
    output:
        cohort="<results>/cohort/cohort.tsv",
        flips="<results>/cohort/label_flips.tsv",
    log:
        "<results>/cohort/cohort.log",
    benchmark:
        "<results>/cohort/cohort.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 1500,
        runtime=10,
    params:
        table=study.eligibility_digest(),  # a change in another column re-runs no training
        eligibility=config["eligibility"],
        cohorts=config["cohorts"],
        expansion=config["expansion"],
        folds=config["folds"],
        seed=config["seed"],
        code=code_version("cohort"),
    script:
        "../scripts/cohort.py"


rule table1:
    """Count the flow of patients; compare the cohorts, if there are both, and patients with and without expansion."""
    input:
        table=ancient(study.table),
        cohort="<results>/cohort/cohort.tsv",
    output:
        flow="<results>/table1/flow.json",
        table1=study.of_training(["<results>/table1/table1.tsv"]),
        expansion="<results>/table1/table1_expansion.tsv",
    log:
        "<results>/table1/table1.log",
    benchmark:
        "<results>/table1/table1.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 1500,
        runtime=10,
    params:
        table=study.table_digest(),
        eligibility=config["eligibility"],
        cohorts=config["cohorts"],
        code=code_version("table1"),
    script:
        "../scripts/table1.py"
