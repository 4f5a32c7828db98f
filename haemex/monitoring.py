"""Watch one training: its learning curve as a picture, its numbers for TensorBoard, and what went wrong, in words.

Nothing here takes part in a training: the history goes in, files for the eyes come out.
"""

import io
import itertools
import struct
import time
from pathlib import Path

from haemex.alarms import training_alarms
from haemex.files import write_atomically
from haemex.logs import announce

# Column of the history by its name in TensorBoard.
SCALARS = {
    "train/loss": "train_loss",
    "train/dice_loss": "train_dice_loss",
    "train/bce": "train_bce",
    "val/dice_median": "val_dice_median",
    "val/auc": "val_auc",
    "val/bce": "val_bce",
    "learning_rate": "learning_rate",
}
SECONDS = "seconds_per_epoch"

# Drawing takes about half a second of the processor that also feeds the device.
DRAW_EVERY_S = 60.0
LINE_FROM = 5  # values; fewer are shown as points as well


class TrainingMonitor:
    """Draw the learning curve of a training, and write its numbers for TensorBoard, as it goes.

    Parameters
    ----------
    purpose : str
        Name of the training, the title of the picture.
    epochs : int
        Number of epochs of the whole training.
    curve_path : path-like
        The picture, PNG.
    events_path : path-like
        The event file; TensorBoard takes a file for one if its name holds "tfevents". A log with wall times, no
        result: its bytes differ from run to run.
    """

    def __init__(self, purpose, epochs, curve_path, events_path):
        if "tfevents" not in Path(events_path).name:
            raise ValueError(f"TensorBoard would not see {events_path}: its name does not hold 'tfevents'")
        self.purpose, self.epochs = purpose, epochs
        self.curve_path, self.events_path = Path(curve_path), Path(events_path)
        self._clock = {}  # epoch: (wall time, seconds or None)
        self._logged = None  # rows in the event file; None: the file is to be written anew
        self._drawn = self._started = time.time()
        self._drawn_monotonic = time.monotonic()

    def epoch(self, history, seconds=None):
        """Take notice of one more epoch.

        Parameters
        ----------
        history : list of dict
            All rows so far, the last one new; columns as in `history.tsv`, None where there is no value. After a
            resume the first call brings the rows of the earlier run as well.
        seconds : float, optional
            Wall time of this epoch; None if it was not measured, e.g. after a resume that found no epoch left to do.

        Raises
        ------
        OSError
            A file cannot be written.
        """
        if not history:
            return
        if self._logged is None and len(history) > 1:
            self._clock = _read_clock(self.events_path) | self._clock
        if seconds is not None or history[-1]["epoch"] not in self._clock:
            self._clock[history[-1]["epoch"]] = (time.time(), seconds)
        self._log(history)
        now = time.monotonic()
        if len(history) >= self.epochs or now - self._drawn_monotonic >= DRAW_EVERY_S:
            self._drawn_monotonic = now
            write_atomically(self.curve_path, _png(draw_learning_curve(history, self.purpose, self.epochs)))

    def end(self, history):
        """Bring both files up to date, and announce what went wrong in the training.

        Parameters
        ----------
        history : list of dict
            All rows.

        Raises
        ------
        OSError
            A file cannot be written.
        """
        for alarm in training_alarms(history):
            announce(f"{self.purpose}: {alarm}")
        if history != self._logged:
            self.epoch(history)

    def _log(self, history):
        """Append the new epochs, which a TensorBoard that looks on sees at once; write the file anew where that fails.

        The file is written anew at the first epoch of this process, so that a killed run leaves no epoch twice.
        """
        logged, self._logged = self._logged, None  # if the disk is full half-way, the next epoch writes all anew
        if logged is not None and history[: len(logged)] == logged and self.events_path.exists():
            new = b"".join(self._records(row) for row in history[len(logged) :])
            with open(self.events_path, "ab") as file:
                file.write(new)
        else:
            head = _record(_event(wall_time=self._started, file_version="brain.Event:2"))
            write_atomically(self.events_path, head + b"".join(self._records(row) for row in history))
        self._logged = [dict(row) for row in history]

    def _records(self, row):
        """Make the record of one epoch."""
        wall_time, seconds = self._clock.get(row["epoch"], (self._started, None))
        values = {tag: row.get(column) for tag, column in SCALARS.items()} | {SECONDS: seconds}
        event = _event(wall_time=wall_time, step=row["epoch"])
        for tag, value in values.items():
            if value is not None:
                event.summary.value.add(tag=tag, simple_value=value)
        return _record(event)


# --- TensorBoard -------------------------------------------------------------------------------------------------
# An event file is a chain of records: length (8 bytes), its checksum (4), an `Event` message, its checksum (4).
# tensorboardX has the messages and the checksum. Its own writer puts the machine's name into the file's name and
# starts a thread, and it cannot go on with a file.


def _event(**fields):
    from tensorboardX.proto.event_pb2 import Event

    return Event(**fields)


def _record(event):
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def _read_clock(path):
    """Read the wall time and the seconds of each epoch from an event file; what cannot be read is left out."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    clock, place = {}, 0
    content = path.read_bytes() if path.exists() else b""
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        data = content[place + 12 : place + 12 + length]
        try:
            event = Event.FromString(data)
        except DecodeError:
            break
        if len(data) < length or _record(event) != content[place : place + length + 16]:
            break  # cut off or damaged
        if event.step:
            seconds = [value.simple_value for value in event.summary.value if value.tag == SECONDS]
            clock[event.step] = (event.wall_time, seconds[0] if seconds else None)
        place += length + 16
    return clock


# --- the learning curve ------------------------------------------------------------------------------------------


def draw_learning_curve(history, purpose, epochs):
    """Draw loss, Dice, cross-entropy and AUC against the epoch, with the steps of the learning rate.

    Parameters
    ----------
    history : list of dict
        Rows of `history.tsv`, one at least; quantities without any value get no panel.
    purpose : str
        Title.
    epochs : int
        Epochs of the whole training, the length of the axis.

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from haemex.figures import BLUE, GREEN, INK, ORANGE, STYLE

    def points(column, of=lambda value: value):
        return [(row["epoch"], of(row[column])) for row in history if row.get(column) is not None]

    training, validation = {"linestyle": "-", "color": BLUE}, {"linestyle": "--", "color": ORANGE, "marker": "o"}
    panels = {
        "Training loss and its parts": [
            ("loss (weighted sum)", points("train_loss"), {"color": INK}),
            ("1 − Dice", points("train_dice_loss"), {"color": BLUE, "linestyle": "--"}),
            ("cross-entropy", points("train_bce"), {"color": GREEN, "linestyle": "-."}),
        ],
        "Dice coefficient": [
            ("training, augmented (mean, soft)", points("train_dice_loss", lambda loss: 1 - loss), training),
            ("validation (median)", points("val_dice_median"), validation),
        ],
        "Cross-entropy of expansion, nats": [
            ("training, augmented", points("train_bce"), training),
            ("validation", points("val_bce"), validation),
        ],
        "AUC of expansion": [("validation", points("val_auc"), validation)],
    }
    panels = {title: curves for title, curves in panels.items() if any(values for _, values, _ in curves)}
    rates = [(row["epoch"], row["learning_rate"]) for row in history]
    steps = [(epoch, rate) for (_, before), (epoch, rate) in itertools.pairwise(rates) if rate != before]

    with matplotlib.rc_context(STYLE):
        rows = -(-len(panels) // 2)
        figure = Figure(figsize=(8.2, 2.8 * rows + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, 2, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.axis("off")
        for axes, (title, curves) in zip(grid, panels.items(), strict=False):
            for epoch, rate in steps:
                axes.axvline(epoch - 0.5, color="#8A8F98", linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
                axes.annotate(
                    f"{rate:.2g}",
                    (epoch - 0.5, 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(0, 2),
                    textcoords="offset points",
                    fontsize=7,
                    color="#5A6068",
                    ha="center",
                )
            for label, values, look in curves:
                if values:
                    # A line through one or two points is no line.
                    look = {"marker": "o" if len(values) < LINE_FROM else None, **look}
                    axes.plot(*zip(*values, strict=True), label=label, markersize=3.5, linewidth=1.5, **look)
            axes.set_title(title, pad=12 if steps else None)  # above the rates
            axes.set_xlim(0.5, max(epochs, len(history)) + 0.5)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(axis="y", color="#E6E8EB", linewidth=0.7)
            if title.startswith(("Dice", "AUC")):
                axes.set_ylim(-0.02, 1.02)
                axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
            else:
                axes.set_ylim(bottom=0)
            axes.legend()
        for axes in grid[max(len(panels) - 2, 0) : len(panels)]:
            axes.set_xlabel("Epoch" + (" (dotted: new learning rate)" if steps else ""))
        figure.suptitle(
            f"{purpose}: epoch {history[-1]['epoch']} of {epochs}, learning rate {history[-1]['learning_rate']:.2g}",
            x=0.01,
            ha="left",
            fontsize=10.5,
        )
    return figure


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


# --- alarms ------------------------------------------------------------------------------------------------------
