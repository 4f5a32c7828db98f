"""Fit the models that the network is compared with, on the training cohort, and sum that cohort up."""

from pathlib import Path

from haemex.clinical import clinical_rows
from haemex.comparators import write_comparators
from haemex.logs import log_to

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        rows = clinical_rows(snakemake.input.table, snakemake.input.cohort)
        write_comparators(
            [row for row in rows if row["cohort"] == "train"],
            measure_folder=Path(snakemake.input.measured[0]).parent,
            convert_folder=Path(snakemake.input.converted[0]).parent,
            path=snakemake.output.comparators,
            expansion=snakemake.params.expansion,
            operating_point=snakemake.params.operating_point,
            min_sensitivity=snakemake.params.min_sensitivity,
        )
