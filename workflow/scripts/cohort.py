"""Make the cohort."""

from haemex.cohort import build_cohort
from haemex.logs import log_to

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        build_cohort(
            table_path=snakemake.input.table,
            measure_paths=snakemake.input.measured,
            cohort_out=snakemake.output.cohort,
            flips_out=snakemake.output.flips,
            eligibility=snakemake.params.eligibility,
            cohorts=snakemake.params.cohorts,
            expansion=snakemake.params.expansion,
            folds=snakemake.params.folds,
            seed=snakemake.params.seed,
        )
