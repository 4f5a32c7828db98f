"""Compute the NCCT markers of one patient."""

from haemex.logs import log_to
from haemex.markers import write_markers

if __name__ == "__main__":
    with log_to(snakemake.log[0], patient=snakemake.wildcards.patient):
        write_markers(
            patient=snakemake.wildcards.patient,
            ct_path=snakemake.input.ct,
            haematoma_path=snakemake.input.haematoma,
            onset_to_ct_h=snakemake.params.onset_to_ct_h,
            read=snakemake.params.read,
            json_out=snakemake.output.json,
            voxels_out=snakemake.output.voxels,
            png_out=snakemake.output.png,
        )
