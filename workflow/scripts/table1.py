"""Compare the training and the test cohort."""

from haemex.characteristics import write_characteristics
from haemex.clinical import clinical_rows
from haemex.logs import log_to

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        write_characteristics(
            clinical_rows(snakemake.input.table, snakemake.input.cohort),
            snakemake.output.table1,
        )
