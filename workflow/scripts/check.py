"""List what is wrong with the table, the scans, the masks and the disk; fail on errors."""

from pathlib import Path

from haemex.check import check_study
from haemex.logs import log_to
from haemex.provenance import ROOT

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        check_study(
            study=snakemake.params.study,
            table_path=snakemake.input.table,
            eligibility=snakemake.params.eligibility,
            cohorts=snakemake.params.cohorts,
            expansion=snakemake.params.expansion,
            folds=snakemake.params.folds,
            slice_thickness_mm=snakemake.params.slice_thickness_mm,
            matrix=snakemake.params.matrix,
            field_of_view_mm=snakemake.params.field_of_view_mm,
            copies=snakemake.params.copies,
            network=snakemake.params.network,
            candidates=snakemake.params.candidates,
            results=Path(snakemake.output.verdict).parents[1],
            threads=snakemake.threads,
            template_folder=ROOT / "workflow/report",
            problems_path=snakemake.log.problems,
            page_path=snakemake.log.page,
            verdict_path=snakemake.output.verdict,
        )
