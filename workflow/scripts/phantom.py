"""Make one synthetic patient."""

from pathlib import Path

from haemex.logs import log_to
from haemex.phantom import make_patient
from haemex.phantom_cohort import draw_patients

if __name__ == "__main__":
    with log_to(snakemake.log[0], patient=snakemake.wildcards.patient):
        settings = snakemake.params.settings
        drawn = draw_patients(settings, snakemake.params.seed)
        make_patient(
            next(patient for patient in drawn if patient["row"]["patient"] == snakemake.wildcards.patient),
            folder=Path(snakemake.output.baseline).parents[1],
            matrix=settings["matrix"],
            seed=snakemake.params.seed,
            background=settings.get("background"),
        )
