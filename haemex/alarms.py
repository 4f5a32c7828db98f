"""What went wrong in a training, told from its history: no learning, divergence, overfitting."""

import statistics

# --- What the alarms go by. All look at medians of three neighbouring values, so that one bad epoch raises none. ---

MEDIAN_OF = 3
# Below this the medians at both ends share epochs, and a fall cannot be told from noise.
MIN_EPOCHS = 5
# The mean loss of the first epoch still holds most of an untrained network's; a training that gets rid of less than a
# tenth of it in all has moved by what its noise and the running-in of the normalisation explain.
LEAST_FALL = 0.10
# A network whose mean training Dice (soft) passed one half has learnt to segment, however little its loss fell since
# its first, perhaps very long, epoch.
LEARNT_DICE_LOSS = 0.5
# Twice over, since a loss near 0 is noisy in proportion and a loss that hardly fell is noisy in absolute terms: at its
# end half as much again as at its best, and a quarter of all that was gained lost again.
DIVERGED_RATIO = 1.5
DIVERGED_SHARE_LOST = 0.25
# Nats. The geometric mean of the probabilities given to what came true is then 22 % lower than it was: more than
# predictions of one set of a few dozen patients sway from one epoch to another.
OVERFIT_RISE = 0.25
# Meanwhile the training cross-entropy fell by a fifth at least: the network learns patients by heart. If it did not
# fall, the validation says something else than overfitting.
OVERFIT_TRAINING_FALL = 0.20


def training_alarms(history):
    """Say what went wrong in a training: no learning, diverged, overfitting.

    Parameters
    ----------
    history : list of dict
        Rows of `history.tsv` of a whole training, None where there is no value.

    Returns
    -------
    list of str
        Sentences; empty if nothing is to be said, as with fewer than `MIN_EPOCHS` epochs.
    """
    alarms = []
    loss, dice_loss = _series(history, "train_loss"), _series(history, "train_dice_loss")
    if len(loss) >= MIN_EPOCHS:
        start, smooth = loss[0][1], _smoothed(loss)
        best_epoch, best = min(smooth, key=lambda point: point[1])
        end = smooth[-1][1]
        segments = bool(dice_loss) and min(value for _, value in _smoothed(dice_loss)) < LEARNT_DICE_LOSS
        # A rate far too high blows the cross-entropy up in the first epoch: then the loss falls, the Dice loss not.
        for name, series in (("loss", loss), ("Dice loss", dice_loss)):
            lowest = min((value for _, value in _smoothed(series)), default=0.0)
            if lowest > (1 - LEAST_FALL) * series[0][1] and not segments:
                alarms.append(
                    f"no learning: the training {name} was {series[0][1]:.3g} in epoch {series[0][0]} and never below "
                    f"{lowest:.3g} (median of {MEDIAN_OF} epochs) in {len(series)} epochs; try another learning_rate, "
                    "and look at the augmented copies"
                )
                break
        if end > DIVERGED_RATIO * best and end > best + DIVERGED_SHARE_LOST * (start - best):
            alarms.append(
                f"diverged: the training loss ends at {end:.3g} after {best:.3g} about epoch {best_epoch} (medians of "
                f"{MEDIAN_OF} epochs); lower learning_rate"
            )
    validation, training = _series(history, "val_bce"), _series(history, "train_bce")
    if len(validation) >= MIN_EPOCHS and len(training) >= MIN_EPOCHS:
        smooth = _smoothed(validation)
        best_epoch, best = min(smooth, key=lambda point: point[1])
        end = smooth[-1][1]
        smooth = _smoothed(training)
        before = min(smooth, key=lambda point: abs(point[0] - best_epoch))[1]
        after = smooth[-1][1]
        if end > best + OVERFIT_RISE and after < (1 - OVERFIT_TRAINING_FALL) * before:
            alarms.append(
                f"overfitting: since about epoch {best_epoch} the cross-entropy of the validation patients rose from "
                f"{best:.3g} to {end:.3g} while that of the training patients fell from {before:.3g} to {after:.3g}; "
                "fewer epochs, or more patients"
            )
    return alarms


def _series(history, column):
    """List (epoch, value) where there is a value."""
    return [(row["epoch"], row[column]) for row in history if row.get(column) is not None]


def _smoothed(series):
    """Return (middle epoch, median) of every `MEDIAN_OF` neighbouring values."""
    windows = [series[i : i + MEDIAN_OF] for i in range(len(series) - MEDIAN_OF + 1)]
    return [(window[MEDIAN_OF // 2][0], statistics.median(value for _, value in window)) for window in windows]
