"""List what is wrong with the table, the scans and the masks; fail on errors."""

from haemex.check import check_cohort, report_problems, write_problems
from haemex.cohort import ineligibility, read_cohort_table, split
from haemex.logs import log_to

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        rows = read_cohort_table(snakemake.input.table)
        entering = [
            row
            for row in rows
            if not ineligibility(row, snakemake.params.eligibility)
            and split(row["admission_date"], snakemake.params.cohorts)
        ]
        problems = check_cohort(entering, [row["patient"] for row in rows], snakemake.params.slice_thickness_mm)
        write_problems(problems, snakemake.output.problems)
        report_problems(problems)
