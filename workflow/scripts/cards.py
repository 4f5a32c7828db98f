"""Write a card for every patient."""

from pathlib import Path

from haemex.cards import write_cards
from haemex.logs import log_to

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        write_cards(
            cohort_path=snakemake.input.cohort,
            predictions_path=snakemake.input.predictions,
            out_of_fold_path=next(iter(snakemake.input.out_of_fold), None),
            model_path=snakemake.input.model[0],
            dice_path=snakemake.input.dice,
            convert_folder=Path(snakemake.input.cts[0]).parent,
            measure_folder=Path(snakemake.input.measured[0]).parent,
            predict_folder=Path(snakemake.input.predictions).parent,
            markers_folder=Path(snakemake.input.markers[0]).parent,
            out_folder=Path(snakemake.output.cards).parent,
        )
