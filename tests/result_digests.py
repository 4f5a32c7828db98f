"""What two runs of one study have to agree in."""

import hashlib

STATE = (".lock", ".unfinished")  # of a run, not of its results


def digest_results(results):
    """Digest every result, hidden ones too, but what says when and how long: logs, events, benchmarks."""
    return {
        path.relative_to(results).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(results.rglob("*"))
        if path.is_file()
        and path.suffix not in (".log", ".tfevents")
        and path.name not in STATE
        and not path.name.endswith(".benchmark.tsv")
    }
