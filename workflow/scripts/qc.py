"""Write the quality page of the cohort."""

from haemex.logs import log_to
from haemex.provenance import ROOT
from haemex.qc import write_page

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        write_page(
            inspected=snakemake.input.rows,
            field_of_view_mm=snakemake.params.field_of_view_mm,
            template_folder=ROOT / "workflow/report",
            page_out=snakemake.output.page,
            table_out=snakemake.output.table,
        )
