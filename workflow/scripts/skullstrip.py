"""Strip the skull of one scan."""

from haemex.logs import log_to
from haemex.skullstrip import skullstrip_scan

if __name__ == "__main__":
    with log_to(snakemake.log[0], patient=snakemake.wildcards.patient):
        skullstrip_scan(
            ct_path=snakemake.input.ct,
            brain_out=snakemake.output.brain,
            json_out=snakemake.output.json,
            seal_gap_mm=snakemake.params.seal_gap_mm,
            min_brain_ml=snakemake.params.min_brain_ml,
            plausible_brain_ml=snakemake.params.plausible_brain_ml,
        )
