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
        seeds="<results>/seed_study/summary.json" if "seed_study" in config else [],
    output:
        report="<results>/report/report.html",
    log:
        "<results>/report/report.log",
    benchmark:
        "<results>/report/report.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    params:
        # The report prints and compares every setting that can change a result.
        config={section: settings for section, settings in config.items() if section != "computing"},
        templates=folder_version("workflow/report"),
        testing=study.testing,
        code=code_version("report"),
    script:
        "../scripts/report.py"
