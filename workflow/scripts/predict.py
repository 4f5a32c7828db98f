"""Apply the locked model to every patient."""

from pathlib import Path

from haemex.logs import log_to
from haemex.prediction import predict_patients

if __name__ == "__main__":
    with log_to(snakemake.log[0]):
        cohort_of = {patient: cohort for cohort, patients in snakemake.params.patients.items() for patient in patients}
        predict_patients(
            bundle_folder=Path(snakemake.input.card[0]).parent,
            patients=[
                (patient, cohort_of[patient], scan, ct)
                for patient, scan, ct in zip(sorted(cohort_of), snakemake.input.scans, snakemake.input.cts, strict=True)
            ],
            preprocessing=snakemake.params.resample,
            threads=snakemake.threads,
            precision=snakemake.params.precision,
            ensemble=snakemake.params.ensemble,
            predictions_path=snakemake.output.predictions,
            masks_folder=snakemake.output.maps,
        )
