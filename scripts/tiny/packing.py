"""Packs scikit-learn's digit scans into the package, so that the suite does not need scikit-learn."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def pack_digits(path: Path) -> None:
    """Write the scans (1797, 8, 8) and labels (1797,), both uint8, as a compressed .npz."""
    rows, labels = load_digits(return_X_y=True)
    scans = np.asarray(rows, np.uint8).reshape(-1, 8, 8)
    np.savez_compressed(path, scans=scans, labels=np.asarray(labels, np.uint8))
