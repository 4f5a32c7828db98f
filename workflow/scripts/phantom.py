"""Make one synthetic patient."""

from pathlib import Path

from haemex.logs import log_to
from haemex.phantom import draw_patients, make_patient

if __name__ == "__main__":
    with log_to(snakemake.log[0], patient=snakemake.wildcards.patient):
        drawn = draw_patients(snakemake.params.settings, snakemake.params.seed)
        make_patient(
            next(patient for patient in drawn if patient["row"]["patient"] == snakemake.wildcards.patient),
            folder=Path(snakemake.output.baseline).parents[1],
            matrix=snakemake.params.settings["matrix"],
            seed=snakemake.params.seed,
        )
