# The quality page: every patient, the worst first; written by `onerror` where patients failed.
# In: pictures and rows of inspect.  Out: index.html, which links to the pictures, and the rows as a table.

from haemex.provenance import ROOT
from haemex.qc import write_failures


rule qc:
    """Gather all inspected patients in one page, worst first."""
    input:
        rows=expand("<results>/inspect/{patient}.json", patient=study.patients),
        pictures=expand("<results>/inspect/{patient}.png", patient=study.patients),
    output:
        page="<results>/qc/index.html",
        table="<results>/qc/qc.tsv",
    log:
        "<results>/qc/qc.log",
    benchmark:
        "<results>/qc/qc.benchmark.tsv"
    conda:
        "../../envs/haemex.yaml"
    params:
        field_of_view_mm=config["resample"]["field_of_view_mm"],
        templates=folder_version("workflow/report", "qc.html.j2", "style.css"),
        code=code_version("qc"),
    script:
        "../scripts/qc.py"


onerror:
    if workflow.is_main_process:  # not in the Snakemake that a cluster job starts
        write_failures(
            page_out=rules.qc.output.page,
            table_out=rules.qc.output.table,
            patients=study.patients,
            followed_up=[patient for patient in study.patients if study.has_followup_scan(patient)],
            field_of_view_mm=config["resample"]["field_of_view_mm"],
            template_folder=ROOT / "workflow/report",
        )
