# One self-contained page, and what a manuscript takes from it.
# In: tables and figures of cohort, table1, select, final, evaluate and cards; digests and masks of measure.
# Out: report.html; its tables as DOCX; the model card; a digest of every patient's scans and mask.


rule report:
    """Write the report, its tables as DOCX, the model card and the digests of the inputs."""
    input:
        flow="<results>/table1/flow.json",
        flips="<results>/cohort/label_flips.tsv",
        cohort="<results>/cohort/cohort.tsv",
        table1=study.of_training(["<results>/table1/table1.tsv"]),
        table1_expansion="<results>/table1/table1_expansion.tsv",
        candidates=study.of_training(["<results>/select/candidates.tsv"]),
        selected=study.of_training(["<results>/select/selected.json"]),
        model=study.of_model(["<results>/final/model/model.json"]),
        measured=expand(
            "<results>/measure/{patient}{part}", patient=study.patients, part=[".json", "_haematoma.nii.gz"]
        ),
        evaluated=rules.evaluate.output,
        cards=rules.cards.output,
        truth=study.truth,
        seeds="<results>/seed_study/summary.json" if "seed_study" in config else [],
        scanner_study="<results>/scanner_study/summary.json" if "scanner_study" in config else [],
    output:
        report=report("<results>/report/report.html", caption="../report/snakemake/report.rst", category="Report"),
        tables=report("<results>/report/tables.docx", caption="../report/snakemake/tables.rst", category="Report"),
        model_card=report(
            "<results>/report/model_card.html", caption="../report/snakemake/model_card.rst", category="Report"
        ),
        inputs="<results>/report/inputs.tsv",
    log:
        "<results>/report/report.log",
    benchmark:
        "<results>/report/report.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 2000,
        runtime=30,
    params:
        # The report prints and compares every setting that can change a result.
        config={section: settings for section, settings in config.items() if section not in ("computing", "storage")},
        table=study.table_digest(),
        # Of the stages that the report rests on; the others look, and change no result.
        codes=lambda w: {
            rule: code_version(rule)
            for stage in study.stages
            if stage not in ("check", "inspect", "new_patients", "qc")
            for rule in {
                "cohort": ("cohort", "table1"),
                "final": ("final", "comparators"),
                "seed_study": ("seed_study_train", "seed_study"),
                "scanner_study": ("scanner_study_train", "scanner_study"),
            }.get(stage, (stage,))
        },
        templates=folder_version("workflow/report"),
        testing=study.testing,
        code=code_version("report"),
    script:
        "../scripts/report.py"
