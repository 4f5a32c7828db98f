"""The command `haemex`: what is done with a trained model outside a study."""

import argparse
import sys

from haemex.errors import InputError
from haemex.pages import plural


def main(arguments=None):
    """Run one command; what the user can mend ends with one sentence and status 1.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the command line by default.

    Returns
    -------
    int
        The exit status: 0, 1 after bad input, 3 where the model does not answer for this patient.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except InputError as error:
        print(f"haemex: {error}", file=sys.stderr)
        return 1


def _parser():
    parser = argparse.ArgumentParser(
        prog="haemex", description="Use a model that a study has trained. Research software, not a medical device."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    predict = commands.add_parser(
        "predict", help="predict expansion for one patient", description="Predict expansion for one patient."
    )
    predict.add_argument("scan", help="DICOM folder as exported, or a NIfTI file in HU")
    predict.add_argument("--model", required=True, help="model bundle, e.g. results/STUDY/final/model")
    predict.add_argument("--output", required=True, help="folder for the results, empty or new")
    predict.add_argument("--patient", default="patient", help="code for the patient, letters and digits; never a name")
    predict.add_argument("--onset-to-ct-h", type=float, help="hours from onset to CT, for the BAT score")
    predict.add_argument("--series", help="label of the series to take, if the right one is not found by itself")
    predict.add_argument("--single", action="store_true", help="the final model alone: faster, no spread")
    predict.set_defaults(run=_predict)
    pack = commands.add_parser("export", help="pack a model bundle into one file")
    pack.add_argument("model", help="model bundle, e.g. results/STUDY/final/model")
    pack.add_argument("archive", help="file to write, ending in .zip, or in .onnx for the main model as ONNX")
    pack.set_defaults(run=_export)
    check = commands.add_parser("check-model", help="check a model bundle, a folder or an archive")
    check.add_argument("model")
    check.set_defaults(run=_check_model)
    unpack = commands.add_parser("import", help="unpack a model bundle that came as one file")
    unpack.add_argument("archive")
    unpack.add_argument("model", help="folder to make")
    unpack.set_defaults(run=_import)
    return parser


def _export(options):
    if options.archive.endswith(".onnx"):
        from haemex.onnx_export import export_onnx

        difference = export_onnx(options.model, options.archive)
        print(f"{options.archive}: differs from PyTorch by at most {difference:.1g}")
        return 0
    from haemex.bundle_archive import export_bundle

    print(f"{options.archive}: digest {export_bundle(options.model, options.archive)}")
    return 0


def _check_model(options):
    from haemex.bundle_archive import check_bundle

    print(_told(options.model, check_bundle(options.model)))
    return 0


def _import(options):
    from haemex.bundle_archive import import_bundle

    print(_told(options.model, import_bundle(options.archive, options.model)))
    return 0


def _told(model, checked):
    """Say in one line which bundle this is."""
    cohort = checked["description"]["cohort"]
    files = plural(len(checked["files"]), "file")
    trained = f"trained on {plural(cohort['patients'], 'patient')}, {cohort['expansions']} with expansion"
    return f"{model}: in order, {files}, {trained}; digest {checked['digest']}"


def _predict(options):
    from haemex.new_patient import predict_new_patient
    from haemex.patient_page import answer_in_words

    found = predict_new_patient(
        options.scan,
        options.model,
        options.output,
        patient=options.patient,
        onset_to_ct_h=options.onset_to_ct_h,
        series=options.series,
        ensemble=not options.single,
    )
    print(f"{answer_in_words(found)}: {_numbers(found)}")
    for reason in found["reasons"]:
        print(f"  {reason}")
    print(f"The page: {options.output}/prediction.html. Research software, not a medical device.")
    return 3 if found["abstained"] else 0


def _numbers(found):
    """Say in one line what the page says in large type; what is not known is left out."""
    told = []
    if found["probability"] is not None:
        told.append(f"probability {found['probability']:.2f}")
    if found["ensemble_sd"] is not None:
        told.append(f"standard deviation of the fold models {found['ensemble_sd']:.2f}")
    told.append(f"haematoma {found['haematoma_ml']:.1f} mL")
    if found["bat_score"] is not None:
        told.append(f"BAT score {found['bat_score']}")
    return ", ".join(told)
