"""Write one scan as NIfTI in HU."""

from haemex.convert import convert_scan
from haemex.logs import log_to

if __name__ == "__main__":
    with log_to(snakemake.log[0], patient=snakemake.wildcards.patient):
        convert_scan(
            source=snakemake.params.scan,
            nifti_out=snakemake.output.nifti,
            json_out=snakemake.output.json,
            slice_thickness_mm=snakemake.params.slice_thickness_mm,
            series=snakemake.params.series or None,
        )
