# The quality page: every patient, the worst first; written by `onerror` where patients failed, with a table of failures.
# In: pictures and rows of inspect.  Out: index.html, which links to the pictures, and the rows as a table.

from pathlib import Path

from haemex.failures import end_well
from haemex.provenance import ROOT
from haemex.qc import end_badly


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
    resources:
        mem_mb=lambda w, attempt: attempt * 2000,
        runtime=10,
    params:
        field_of_view_mm=config["resample"]["field_of_view_mm"],
        templates=folder_version("workflow/report", "qc.html.j2", "style.css"),
        code=code_version("qc"),
    script:
        "../scripts/qc.py"


onerror:
    if workflow.is_main_process:  # not in the Snakemake that a cluster job starts
        end_badly(
            study=study,
            page_out=rules.qc.output.page,
            table_out=rules.qc.output.table,
            failures_out=Path(rules.qc.output.page).with_name("failures.tsv"),
            field_of_view_mm=config["resample"]["field_of_view_mm"],
            template_folder=ROOT / "workflow/report",
        )


onsuccess:
    if workflow.is_main_process:
        end_well(
            study=study,
            results=Path(rules.qc.output.page).parents[1],
            failures=Path(rules.qc.output.page).with_name("failures.tsv"),
        )
