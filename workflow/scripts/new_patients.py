"""List all new patients."""

from pathlib import Path

from haemex.logs import log_to
from haemex.new_patients import write_summary
from haemex.provenance import ROOT

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        write_summary(
            [Path(folder, "prediction.json") for folder in snakemake.input.folders],
            table_out=snakemake.output.table,
            page_out=snakemake.output.page,
            template_folder=ROOT / "workflow" / "report",
        )
