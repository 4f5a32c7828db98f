"""Choose the candidate, the operating point and the calibration."""

from pathlib import Path

from haemex.logs import log_to
from haemex.selection import select

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        select(
            candidates=snakemake.params.candidates,
            train_folder=Path(snakemake.input.predictions[0]).parents[2],
            cohort_path=snakemake.input.cohort,
            criterion=snakemake.params.criterion,
            operating_point=snakemake.params.operating_point,
            min_sensitivity=snakemake.params.min_sensitivity,
            calibration=snakemake.params.calibration,
            collapsed_dice=snakemake.params.collapsed_dice,
            collapsed_fold=snakemake.params.collapsed_fold,
            selected_path=snakemake.output.selected,
            predictions_path=snakemake.output.predictions,
            candidates_path=snakemake.output.candidates,
        )
