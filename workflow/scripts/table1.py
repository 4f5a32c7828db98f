"""Count the flow of patients; compare the cohorts, and the patients with and without expansion."""

from haemex.characteristics import BY_EXPANSION, write_characteristics
from haemex.clinical import clinical_rows
from haemex.cohort import write_flow
from haemex.logs import log_to

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        write_flow(
            table_path=snakemake.input.table,
            cohort_path=snakemake.input.cohort,
            flow_out=snakemake.output.flow,
            eligibility=snakemake.params.eligibility,
            cohorts=snakemake.params.cohorts,
        )
        rows = clinical_rows(snakemake.input.table, snakemake.input.cohort)
        for path in snakemake.output.table1:  # none in an external evaluation, which has one cohort
            write_characteristics(rows, path)
        write_characteristics(rows, snakemake.output.expansion, BY_EXPANSION)
