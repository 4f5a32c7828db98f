import io
import math
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haemex import monitoring as module
from haemex.alarms import training_alarms
from haemex.monitoring import TrainingMonitor, draw_learning_curve

RATE = [1e-4] * 20 + [1e-5] * 10 + [1e-6] * 10


def row(epoch, dice_loss, bce, rate=1e-4, **validation):
    empty = {"val_dice_median": None, "val_auc": None, "val_bce": None}
    return {
        "epoch": epoch,
        "learning_rate": rate,
        "train_loss": 0.9 * dice_loss + 0.1 * bce,
        "train_dice_loss": dice_loss,
        "train_bce": bce,
        **empty,
        **validation,
    }


def ordinary(seed=0, noise=0.03, epochs=40, every=4):
    """A training that goes well: exponential falls with relative noise, validation a little worse and noisier."""
    rng = random.Random(seed)
    rows = []
    for epoch in range(1, epochs + 1):
        dice_loss = (0.05 + 0.8 * math.exp(-epoch / 5)) * rng.lognormvariate(0, noise)
        bce = (0.35 + 0.25 * math.exp(-epoch / 10)) * rng.lognormvariate(0, noise)
        rows.append(row(epoch, dice_loss, bce, RATE[(epoch - 1) % 40]))
        if epoch % every == 0 or epoch == epochs:
            rows[-1] |= {
                "val_dice_median": 1 - dice_loss - 0.02,
                "val_auc": 0.7 + rng.gauss(0, 0.02),
                "val_bce": 0.58 * rng.lognormvariate(0, 2 * noise),
            }
    return rows


def losses(values, **columns):
    return [row(epoch, value, value, **columns) for epoch, value in enumerate(values, start=1)]


# --- TensorBoard, read with a reader of its own: the record format and the wire format of protobuf from their
# --- specifications, without the library that wrote them ---------------------------------------------------------


def crc32c(data):
    """Castagnoli's checksum, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def masked(data):
    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


def fields(data):
    """(number, value) of each field of a protobuf message."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(kind)
            if size is None:
                size, at = varint(data, at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def read_events(path):
    """Version of the file, and (step, wall time, {tag: value}) of each record."""
    content, version, steps = path.read_bytes(), None, []
    while content:
        length = struct.unpack("<Q", content[:8])[0]
        data = content[12 : 12 + length]
        assert struct.unpack("<I", content[8:12])[0] == masked(content[:8])
        assert struct.unpack("<I", content[12 + length : 16 + length])[0] == masked(data)
        content = content[16 + length :]
        event = dict(fields(data))
        if 3 in event:
            version = event[3].decode()
            continue
        scalars = {}
        for number, value in fields(event.get(5, b"")):
            assert number == 1
            one = dict(fields(value))
            scalars[one[1].decode()] = struct.unpack("<f", one[2])[0]
        steps.append((event[2], struct.unpack("<d", event[1])[0], scalars))
    return version, steps


def test_the_readers_checksum_is_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720
    assert crc32c(bytes(32)) == 0x8A9136AA


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "curve.png", tmp_path / "fold0.tfevents"


def watch(history, paths, epochs=None, start=1, seconds=2.5):
    monitor = TrainingMonitor("train base fold0", epochs or len(history), *paths)
    for epoch in range(start, len(history) + 1):
        monitor.epoch(history[:epoch], seconds)
    return monitor


def test_tensorboard_gets_every_number_once(paths):
    history = ordinary(epochs=12)
    watch(history, paths)
    version, steps = read_events(paths[1])
    assert version == "brain.Event:2"
    assert [step for step, _, _ in steps] == list(range(1, 13))
    times = [time for _, time, _ in steps]
    assert times == sorted(times)
    for known, (_, _, scalars) in zip(history, steps, strict=True):
        assert scalars.pop("seconds_per_epoch") == 2.5
        assert scalars.keys() == {tag for tag, column in module.SCALARS.items() if known[column] is not None}
        for tag, value in scalars.items():
            assert value == pytest.approx(known[module.SCALARS[tag]], rel=1e-6)
    assert len(steps[0][2]) == 4 and len(steps[3][2]) == 7  # validation in every fourth epoch


def test_the_name_of_the_event_file_is_the_given_one_and_nothing_stands_beside_it(paths):
    watch(ordinary(epochs=3), paths)
    assert {path.name for path in paths[0].parent.iterdir()} == {"curve.png", "fold0.tfevents"}
    with pytest.raises(ValueError, match="tfevents"):
        TrainingMonitor("x", 1, paths[0], paths[0].with_name("events.log"))


def test_a_running_tensorboard_sees_new_epochs_in_the_file_it_has_open(paths):
    history = ordinary(epochs=4)
    monitor = TrainingMonitor("x", 4, *paths)
    monitor.epoch(history[:1])
    with open(paths[1], "rb") as file:
        file.read()
        monitor.epoch(history[:2])
        assert len(file.read()) > 50


def test_after_a_resume_no_epoch_is_lost_or_doubled_and_wall_times_stay(paths, monkeypatch):
    history = ordinary(epochs=8)
    now = [1000.0]
    monkeypatch.setattr(module.time, "time", lambda: now.__setitem__(0, now[0] + 10) or now[0])
    watch(history[:5], paths, epochs=8, seconds=7.0)
    before = read_events(paths[1])[1]
    # Killed in the writing of epoch 5's record, when the last checkpoint was that of epoch 3.
    paths[1].write_bytes(paths[1].read_bytes()[:-9])
    other = [dict(known) for known in history]
    other[3]["train_loss"] = 0.123
    watch(other, paths, start=4, seconds=3.0)
    after = read_events(paths[1])[1]
    assert [step for step, _, _ in after] == list(range(1, 9))
    assert after[:3] == before[:3]
    assert after[3][2]["train/loss"] == pytest.approx(0.123)
    assert [scalars["seconds_per_epoch"] for _, _, scalars in after] == [7.0] * 3 + [3.0] * 5
    assert after[3][1] > before[4][1]
    times = [time for _, time, _ in after]
    assert times == sorted(times)


def test_a_resume_after_the_last_epoch_brings_the_picture_and_keeps_the_times(paths):
    history = ordinary(epochs=6)
    watch(history, paths)
    before = read_events(paths[1])[1]
    paths[0].unlink()
    history[-1]["val_auc"] = 0.9
    TrainingMonitor("x", 6, *paths).epoch(history)
    after = read_events(paths[1])[1]
    assert paths[0].exists() and after[-1][2].pop("val/auc") == pytest.approx(0.9)
    before[-1][2].pop("val/auc")
    assert after == before


@pytest.mark.parametrize("damage", [b"", b"no event file", struct.pack("<Q", 2**60) + bytes(40), bytes(200)])
def test_a_damaged_event_file_is_written_anew(paths, damage):
    paths[1].write_bytes(damage)
    history = ordinary(epochs=6)
    watch(history, paths, start=4)
    steps = read_events(paths[1])[1]
    assert [step for step, _, _ in steps] == list(range(1, 7))
    assert ["seconds_per_epoch" in scalars for _, _, scalars in steps] == [False] * 3 + [True] * 3


def test_a_training_begun_anew_takes_no_times_from_another(paths):
    watch(ordinary(epochs=5), paths, seconds=99.0)
    watch(ordinary(epochs=3), paths, epochs=5, seconds=1.0)
    steps = read_events(paths[1])[1]
    assert [scalars["seconds_per_epoch"] for _, _, scalars in steps] == [1.0] * 3
    watch(ordinary(epochs=3), paths, epochs=5, seconds=None)
    assert not any("seconds_per_epoch" in scalars for _, _, scalars in read_events(paths[1])[1])


def test_a_row_that_changes_afterwards_is_corrected(paths):
    history = ordinary(epochs=3)
    monitor = watch(history, paths)
    history[1]["val_auc"] = 0.5
    monitor.epoch(history)
    steps = read_events(paths[1])[1]
    assert [step for step, _, _ in steps] == [1, 2, 3]
    assert steps[1][2]["val/auc"] == 0.5


def test_a_failed_write_leaves_no_broken_chain(paths, monkeypatch):
    history = ordinary(epochs=4)
    monitor = watch(history[:2], paths, epochs=4)

    class Full(io.FileIO):
        def write(self, data):
            super().write(data[:7])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda path, mode: Full(path, mode))
        with pytest.raises(OSError, match="No space"):
            monitor.epoch(history[:3])
    monitor.epoch(history)
    assert [step for step, _, _ in read_events(paths[1])[1]] == [1, 2, 3, 4]


# --- the picture -------------------------------------------------------------------------------------------------


def test_the_curve_is_drawn_once_a_minute_and_after_the_last_epoch(paths, monkeypatch):
    now, drawn = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "draw_learning_curve", lambda history, *_: drawn.append(len(history)))
    monkeypatch.setattr(module, "_png", lambda _: b"picture")
    history = ordinary(epochs=11)
    monitor = TrainingMonitor("x", 11, *paths)
    for epoch in range(1, 12):
        now[0] += 25.0
        monitor.epoch(history[:epoch])
    assert drawn == [3, 6, 9, 11]
    assert paths[0].read_bytes() == b"picture"


def test_the_same_history_gives_the_same_picture_without_a_date(paths):
    history = ordinary(epochs=5)
    watch(history, paths)
    first = paths[0].read_bytes()
    watch(history, paths)
    assert paths[0].read_bytes() == first
    assert b"matplotlib" not in first and b"tEXt" not in first
    assert zlib.crc32(first)  # and it is not empty


def test_the_curves_are_the_history():
    history = ordinary(epochs=40)
    figure = draw_learning_curve(history, "train base fold0", 40)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "Training loss and its parts",
        "Dice coefficient",
        "Cross-entropy of expansion, nats",
        "AUC of expansion",
    ]
    dice = {line.get_label(): line.get_xydata() for line in figure.axes[1].lines}
    training = np.array([(known["epoch"], 1 - known["train_dice_loss"]) for known in history])
    assert np.allclose(dice["training, augmented (mean, soft)"], training)
    assert dice["validation (median)"][:, 0].tolist() == list(range(4, 41, 4))
    assert np.allclose(dice["validation (median)"][:, 1], [known["val_dice_median"] for known in history[3::4]])
    # The steps of the learning rate lie before the first epoch with the new one.
    steps = [line.get_xdata()[0] for line in figure.axes[3].lines if line.get_xdata()[0] == line.get_xdata()[-1]]
    assert steps == [20.5, 30.5]
    assert {"1e-05", "1e-06"} <= {text.get_text() for text in figure.axes[3].texts}


def test_a_final_model_has_no_empty_panel_and_one_epoch_can_be_seen():
    history = [row(1, 0.9, 0.7)]
    figure = draw_learning_curve(history, "final", 40)
    assert [axes.get_title(loc="left")[:4] for axes in figure.axes if axes.lines] == ["Trai", "Dice", "Cros"]
    assert all(line.get_marker() == "o" for axes in figure.axes for line in axes.lines)
    assert figure.axes[0].get_xlim() == (0.5, 40.5)


# --- alarms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.08])
def test_ordinary_noisy_trainings_raise_no_alarm(noise):
    for seed in range(60):
        for epochs, every in ((40, 4), (10, 1), (5, 1), (120, 12)):
            assert training_alarms(ordinary(seed, noise, epochs, every)) == []


def test_a_long_first_epoch_that_learns_nearly_all_raises_no_alarm():
    assert training_alarms(losses([0.110, 0.108, 0.104, 0.106, 0.103, 0.105])) == []


def test_a_cross_entropy_that_stays_at_chance_is_no_alarm_of_the_training():
    """Of 27 % with expansion: chance is 0.583 nats. That prediction is not learnt is the selection's to say."""
    rng = random.Random(3)
    history = [row(e, 0.06 + 0.8 * math.exp(-e / 4), 0.583 + rng.gauss(0, 0.02)) for e in range(1, 41)]
    assert training_alarms(history) == []


def test_no_learning():
    rng = random.Random(1)
    (alarm,) = training_alarms(losses([0.95 - 0.001 * e + rng.gauss(0, 0.01) for e in range(40)]))
    assert alarm.startswith("no learning") and "epoch 1" in alarm
    # Known answers beside the limit of a tenth: medians of three end at 0.91 and at 0.89 of the first.
    assert training_alarms(losses([1.0, 0.99, 0.91, 0.91, 0.91]))
    assert not training_alarms(losses([1.0, 0.99, 0.89, 0.89, 0.89]))
    # One lucky epoch is no learning.
    assert training_alarms(losses([1.0, 0.99, 0.3, 0.98, 0.99, 0.97]))


def test_no_learning_behind_a_cross_entropy_that_came_down():
    """A training of a tiny network at a learning rate of 3: its loss fell by 14 %, its Dice loss by 1 %."""
    history = [row(e, d, b) for e, (d, b) in enumerate([(0.861, 2.11), *[(0.852, 0.80)] * 9], start=1)]
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]
    (alarm,) = training_alarms(history)
    assert alarm.startswith("no learning: the training Dice loss was 0.861 in epoch 1 and never below 0.852")
    assert "in 10 epochs" in alarm


def test_diverged():
    (alarm,) = training_alarms(losses([1.0, 0.6, 0.3, 0.2, 0.2, 0.2, 0.8, 0.9, 0.9]))
    assert alarm.startswith("diverged") and "0.9 " in alarm and "0.2 about epoch 4" in alarm
    # One bad epoch at the end is not a divergence, and one that recovered is none either.
    assert training_alarms(losses([1.0, 0.6, 0.3, 0.2, 0.2, 0.2, 0.9])) == []
    assert training_alarms(losses([1.0, 0.6, 0.3, 0.2, 0.9, 0.9, 0.9, 0.3, 0.2, 0.2])) == []
    # Half as much again, but little of what was gained is lost.
    assert training_alarms(losses([1.0, 0.3, 0.05, 0.05, 0.05, 0.09, 0.09, 0.09])) == []
    # It never learnt, and then blew up.
    assert {alarm.split(":")[0] for alarm in training_alarms(losses([1.0, 1.0, 0.98, 2.0, 3.0, 5.0]))} == {
        "no learning",
        "diverged",
    }


def validated(validation, training):
    """One validation per epoch; a Dice that is learnt."""
    return [
        row(epoch, 0.05 + 0.9 / epoch, bce, val_bce=val, val_auc=0.7, val_dice_median=0.9)
        for epoch, (val, bce) in enumerate(zip(validation, training, strict=True), start=1)
    ]


def test_overfitting():
    falling = [0.6, 0.55, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05]
    rising = [0.6, 0.58, 0.57, 0.58, 0.7, 0.9, 1.1, 1.3]
    (alarm,) = training_alarms(validated(rising, falling))
    assert alarm.startswith("overfitting") and "from 0.58 to 1.1" in alarm and "about epoch 2" in alarm
    # Beside the limit of 0.25 nats, medians of three: best 0.6, end 0.86 and 0.84.
    for end, alarms in ((0.86, 1), (0.84, 0)):
        assert len(training_alarms(validated([0.6] * 5 + [end] * 3, falling))) == alarms
    # The validation worsens, but so does the training, or it stands still: something else is wrong.
    assert training_alarms(validated(rising, [0.6] * 8)) == []
    # One bad validation at the end is noise.
    assert training_alarms(validated([0.6] * 7 + [2.0], falling)) == []


def test_short_trainings_and_missing_columns_raise_nothing():
    assert training_alarms([]) == []
    for epochs in range(1, 5):
        assert training_alarms(losses([1.0] * epochs)) == []  # the demo trains for two epochs
    old = [{key: value for key, value in known.items() if key != "val_auc"} for known in ordinary()]
    assert training_alarms(old) == []


@given(st.lists(st.tuples(*[st.none() | st.floats(0, 1e6)] * 3), max_size=30))
def test_alarms_never_fail(values):
    history = [
        {**row(epoch, 0.5, 0.5), "train_loss": loss, "train_bce": bce, "val_bce": val}
        for epoch, (loss, bce, val) in enumerate(values, start=1)
    ]
    assert isinstance(training_alarms(history), list)
