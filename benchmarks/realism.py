"""Measure synthetic head CT beside a real one: a table, a figure, and a sheet of shuffled slices.

    python benchmarks/realism.py --real SERIES_FOLDER --out OUT

OUT holds pictures of the real head: look at them, do not publish them, and keep OUT outside the project.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from haemex import realism
from haemex.phantom import make_patient
from haemex.tables import write_table

try:
    from haemex.phantom_cohort import draw_patients
except ImportError:
    from haemex.phantom import draw_patients

LEVELS_MM = {  # below the vertex of the brain
    "base": 118, "posterior fossa": 103, "suprasellar cistern": 86, "basal ganglia": 70, "lateral ventricles": 52,
    "centrum semiovale": 33, "vertex": 14,
}  # fmt: skip
WINDOW_HU = (0.0, 80.0)
TILE_MM, TILE_PX = (232.0, 192.0), (464, 384)  # rows, columns
LARGEST_ML = 25.0  # of the haematomas: what they reach is left out


def synthetic_heads(count, matrix, seed, folder):
    """Render `count` patients with small haematomas and clear ventricles, old and young, men and women."""
    settings = {"train": max(24, 5 * count), "test": 4, "excluded_each": 1, "matrix": matrix}
    drawn = [
        one
        for one in draw_patients(settings, seed)
        if not one["truth"]["reason"]
        and not one["truth"]["trap"]
        and not one["row"]["intraventricular_haemorrhage"]
        and one["truth"]["volume_ml"] < LARGEST_ML
    ]
    drawn.sort(key=lambda one: (one["row"]["sex"], one["row"]["age_years"]))
    taken = [drawn[round(index)] for index in np.linspace(0, len(drawn) - 1, count)]
    for one in taken:
        name = one["row"]["patient"]
        make_patient(one, folder, matrix, seed)
        about = {"name": name, "sex": one["row"]["sex"], "age": one["row"]["age_years"]}
        yield realism.read_head(Path(folder, name, "baseline"), Path(folder, name, "baseline_mask.nii.gz"), about)


def tile(head, index):
    """Show one slice in the window: TILE_MM about the middle of the head, TILE_PX pixels, uint8."""
    brain = np.argwhere(head.brain.any(0))
    middle = (brain.min(0) + brain.max(0)) / 2 * head.pixel_mm + (-6.0, 0.0)  # the face needs room in front
    first = (middle - np.array(TILE_MM) / 2) / head.pixel_mm
    last = (middle + np.array(TILE_MM) / 2) / head.pixel_mm
    low, high = WINDOW_HU
    grey = Image.fromarray(np.clip((head.hu[index] - low) * (255 / (high - low)), 0, 255).astype(np.uint8))
    return np.asarray(
        grey.transform(
            TILE_PX[::-1], Image.Transform.EXTENT, (first[1], first[0], last[1], last[0]), Image.Resampling.BICUBIC
        )
    )


def clear_slice(head, below_mm):
    """The slice nearest to a level that no haematoma reaches; None if it lies more than 8 mm away."""
    distance = np.abs(head.below_vertex_mm() - below_mm)
    distance[head.left_out.any((1, 2))] = np.inf
    return int(distance.argmin()) if distance.min() <= 8 else None


def draw_sheet(real, heads, path, answers, seed):
    """Write ten shuffled slices, five of them real, and which is which."""
    rng = np.random.default_rng(seed)
    picked = []
    for name in rng.permutation(list(LEVELS_MM)[1:])[:5]:
        picked.append(("real", "", name, tile(real, realism.nearest_slice(real, LEVELS_MM[name]))))
    used, order = [], rng.permutation(list(LEVELS_MM)[1:])
    for name in [*order, *order]:
        free = sorted(rng.permutation(len(heads)).tolist(), key=used.count)
        clear = ((number, clear_slice(heads[number], LEVELS_MM[name])) for number in free)
        number, index = next(((n, z) for n, z in clear if z is not None), (None, None))
        if number is not None and len(picked) < 10:
            used.append(number)
            picked.append(("synthetic", heads[number].about["name"], name, tile(heads[number], index)))
    picked = [picked[index] for index in rng.permutation(len(picked))]
    canvas = Image.new("L", (5 * TILE_PX[1], 2 * (TILE_PX[0] + 22)))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(18)
    for number, (_, _, _, image) in enumerate(picked):
        row, column = divmod(number, 5)
        canvas.paste(Image.fromarray(image), (column * TILE_PX[1], row * (TILE_PX[0] + 22) + 22))
        draw.text((column * TILE_PX[1] + 8, row * (TILE_PX[0] + 22)), str(number + 1), 255, font)
    canvas.save(path)
    columns = ("kind", "head", "level")
    write_table(answers, [{"number": n} | dict(zip(columns, one, strict=False)) for n, one in enumerate(picked, 1)])


def draw_figure(real, heads, path):
    """Write slices of both at matching levels, and histograms and noise spectra."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = heads[: min(3, len(heads))]
    figure = plt.figure(figsize=(2.2 * len(LEVELS_MM), 2.66 * (1 + len(shown)) + 3.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.66 * (1 + len(shown)), 3.2))
    grid = top.subplots(1 + len(shown), len(LEVELS_MM))
    for axes, head in zip(grid, [real, *shown], strict=True):
        for ax, (name, below) in zip(axes, LEVELS_MM.items(), strict=True):
            ax.imshow(tile(head, realism.nearest_slice(head, below)), cmap="gray", vmin=0, vmax=255)
            ax.set_xticks([])
            ax.set_yticks([])
            if head is real:
                ax.set_title(name, fontsize=9)
        about = head.about
        label = "real" if head is real else f"synthetic, {about['sex']}, {about['age']}"
        axes[0].set_ylabel(label, fontsize=9)
    panels = bottom.subplots(1, 3)
    all_curves = [realism.curves(head) for head in heads]
    real_curves = realism.curves(real)
    middles = [(bins[1:] + bins[:-1]) / 2 for bins in (realism.BRAIN_BINS, realism.BONE_BINS, realism.NPS_BINS)]
    words = (("brain", "HU"), ("bone", "HU"), ("noise", "spatial frequency, lp/mm"))
    for ax, x, (key, unit) in zip(panels, middles, words, strict=True):
        for number, one in enumerate(all_curves):
            ax.plot(x, one[key], color="tab:blue", lw=0.7, alpha=0.6, label=None if number else "synthetic")
        ax.plot(x, real_curves[key], color="tab:orange", lw=1.8, label="real")
        ax.set(title={"noise": "noise power, normalised"}.get(key, f"{key}, share per HU"), xlabel=unit, ylim=(0, None))
        ax.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    """Read the command line, render, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", required=True, help="folder with one real head CT series without contrast")
    parser.add_argument("--out", required=True, help="folder for table and pictures, outside the project")
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--matrix", type=int, default=512)
    parser.add_argument("--quick", action="store_true", help="three patients and the table only")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    real = realism.read_head(options.real)
    with tempfile.TemporaryDirectory() as folder:
        heads = list(synthetic_heads(3 if options.quick else options.patients, options.matrix, options.seed, folder))
    rows = realism.compare(
        realism.measure(real), [realism.measure(head) for head in heads], [head.about for head in heads]
    )
    write_table(out / "realism.tsv", rows)
    for row in rows:
        real_value, middle = ("-" if row[key] is None else f"{row[key]:.3g}" for key in ("real", "synthetic_median"))
        words = (real_value, middle, row["synthetic_range"] or "", row["plausible"] or "", row["verdict"])
        print(f"{row['measure']:42s} {row['unit']:6s}", "{:>8s} {:>8s}  {:20s} {:18s} {}".format(*words))
    steps = np.diff(real.position_mm)
    print(f"{sum(row['verdict'] == 'outside' for row in rows)} of {len(rows)} measures outside.")
    print(f"Slices are {steps.min():.1f} to {steps.max():.1f} mm apart in the real head, 5 mm in the synthetic ones.")
    if not options.quick:
        draw_figure(real, heads, out / "realism.png")
        draw_sheet(real, heads, out / "sheet.png", out / "sheet_answers.tsv", options.seed)
        print("realism.png and sheet.png show a real patient: do not publish them.")


if __name__ == "__main__":
    main()
