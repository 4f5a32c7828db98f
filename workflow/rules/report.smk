# One self-contained page.
# In: tables and figures of cohort, table1, select, final and evaluate.  Out: report.html.


rule report:
    """Write the report."""
    input:
        flow="<results>/cohort/flow.json",
        flips="<results>/cohort/label_flips.tsv",
        table1="<results>/table1/table1.tsv",
        candidates="<results>/select/candidates.tsv",
        selected="<results>/select/selected.json",
        model="<results>/final/model/model.json",
        evaluated=rules.evaluate.output,
        truth=study.truth,
    output:
        report="<results>/report/report.html",
    log:
        "<results>/report/report.log",
    benchmark:
        "<results>/report/report.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    params:
        config=config,  # the report prints and compares every setting
        templates=folder_version("workflow/report"),
        testing=study.testing,
        code=code_version("report"),
    script:
        "../scripts/report.py"
