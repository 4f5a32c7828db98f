# Every problem of the whole cohort at once, before any computing.
# In: the cohort table, headers of scans, masks.  Out: verdict.json, where there is no error. The table and the page of
# problems are logs: Snakemake deletes the outputs of a job that fails, and they are most wanted then.


rule check:
    """List what is wrong with the table, the scans, the masks and the disk; fail on errors."""
    input:
        table=ancient(study.table),
        files=[path for patient in study.checked for path in study.given(patient, *study.FILES)],
    output:
        verdict="<results>/check/verdict.json",
    log:
        "<results>/check/check.log",
        problems="<results>/check/problems.tsv",
        page="<results>/check/index.html",
    benchmark:
        "<results>/check/check.benchmark.tsv"
    priority: 100  # before anything that takes time
    conda:
        "../../envs/haemex.yaml"
    threads: 4
    resources:
        mem_mb=lambda w, attempt: attempt * 2000,
        runtime=30,
    params:
        study=config["study"],
        table=lambda w: study.check_digest(),
        eligibility=config["eligibility"],
        cohorts=config["cohorts"],
        expansion=config["expansion"],
        folds=config["folds"],
        slice_thickness_mm=config["convert"]["slice_thickness_mm"],
        matrix=config["resample"]["matrix"],
        field_of_view_mm=config["resample"]["field_of_view_mm"],
        copies=config["augment"]["copies"],
        network=config["network"],
        candidates=len(study.candidates),
        templates=folder_version("workflow/report", "check.html.j2", "style.css"),
        code=code_version("check"),
    script:
        "../scripts/check.py"
