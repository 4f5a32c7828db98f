# Every problem of the whole cohort at once, before any computing.
# In: the cohort table, the headers of scans and masks.  Out: problems.tsv; the job fails where errors stand in it.


rule check:
    """List what is wrong with the table, the scans and the masks; fail on errors."""
    input:
        table=ancient(study.table),
        files=[path for patient in study.patients for path in study.given(patient, *study.FILES)],
    output:
        problems="<results>/check/problems.tsv",
    log:
        "<results>/check/check.log",
    benchmark:
        "<results>/check/check.benchmark.tsv"
    priority: 100  # before anything that takes time
    conda:
        "../../envs/haemex.yaml"
    params:
        table=study.table_digest(),
        eligibility=config["eligibility"],
        cohorts=config["cohorts"],
        slice_thickness_mm=config["convert"]["slice_thickness_mm"],
        code=code_version("check"),
    script:
        "../scripts/check.py"
