"""Make the augmented copies of one patient."""

from haemex.augment import augment_patient
from haemex.logs import log_to

if __name__ == "__main__":
    with log_to(snakemake.log[0], patient=snakemake.wildcards.patient):
        augment_patient(
            ct_path=snakemake.input.ct,
            haematoma_path=snakemake.input.haematoma,
            ct_out=snakemake.output.ct,
            haematoma_out=snakemake.output.haematoma,
            json_out=snakemake.output.json,
            copies=snakemake.params.copies,
            include_original=snakemake.params.include_original,
            scaling_percent=snakemake.params.scaling_percent,
            translation_percent=snakemake.params.translation_percent,
            rotation_deg=snakemake.params.rotation_deg,
            seed=snakemake.params.seed,
            patient=snakemake.wildcards.patient,
        )
