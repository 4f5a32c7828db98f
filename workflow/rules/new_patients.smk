# A finished model applied to a list of new patients; only with `new_patients` in the config, and then nothing else.
# In: scans as the table names them, the model bundle.  Out: a page, numbers and masks per patient; a page of all.


rule new_patient:
    """Predict one new patient, from the hospital's export to one page."""
    input:
        scan=lambda w: study.scan(w.patient),
        model=study.model_files(),
    output:
        folder=directory("<results>/new_patient/{patient}"),
    log:
        "<results>/new_patient/{patient}.log",
    benchmark:
        "<results>/new_patient/{patient}.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 5000,
        runtime=30,
    params:
        row=lambda w: study.rows[w.patient],
        listing=lambda w: study.listing(w.patient),
        model=study.model,
        precision=config["predict"]["precision"],
        ensemble=config["predict"]["ensemble"],
        templates=folder_version("workflow/report", "patient.html.j2", "patient.css", "style.css"),
        code=code_version("new_patient"),
    script:
        "../scripts/new_patient.py"


rule new_patients:
    """List all new patients, the highest probability first."""
    input:
        folders=expand("<results>/new_patient/{patient}", patient=study.patients),
    output:
        table="<results>/new_patients/predictions.tsv",
        page="<results>/new_patients/index.html",
    log:
        "<results>/new_patients/new_patients.log",
    benchmark:
        "<results>/new_patients/new_patients.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    resources:
        mem_mb=lambda w, attempt: attempt * 1500,
        runtime=10,
    params:
        templates=folder_version("workflow/report", "new_patients.html.j2", "style.css"),
        code=code_version("new_patients"),
    script:
        "../scripts/new_patients.py"
