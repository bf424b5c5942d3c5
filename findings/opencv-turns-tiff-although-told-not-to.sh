#!/bin/sh
# OpenCV 5.0.0.93 (numpy 2.4.6, Pillow 13.0.0 to write): TIFFs are turned by their orientation tag also with
# IMREAD_IGNORE_ORIENTATION and IMREAD_UNCHANGED. PNGs are not, as documented.
#
# Code that reads pictures with one of these flags "as stored" gets PNGs as stored and TIFFs turned, so a picture and its
# mask of two formats may lie differently.
#
# Source: of both flags the documentation says that the orientation is ignored (the same text:
# https://docs.rs/opencv/0.92.0/opencv/imgcodecs/enum.ImreadModes.html). About turning TIFFs inside the decoder:
# https://github.com/opencv/opencv/issues/10703 and https://github.com/opencv/opencv/pull/14609
#
# Output seen (stored is [[0, 1, 2], [3, 4, 5]], with orientation 3, half a turn):
#   PNG IMREAD_UNCHANGED [[0, 1, 2], [3, 4, 5]]
#   PNG IMREAD_IGNORE_ORIENTATION [[0, 1, 2], [3, 4, 5]]
#   TIFF IMREAD_UNCHANGED [[5, 4, 3], [2, 1, 0]]
#   TIFF IMREAD_IGNORE_ORIENTATION [[5, 4, 3], [2, 1, 0]]
#
# Exit 0: it behaves so. Exit 1: no longer.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 pillow==13.0.0 opencv-python-headless==5.0.0.93
"$folder/venv/bin/python" - <<'PYTHON'
import io

import cv2
import numpy as np
from PIL import Image

stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
exif = Image.Exif()
exif[0x112] = 3
changed = False
for kind, expected in (("PNG", stored), ("TIFF", stored[::-1, ::-1])):
    file = io.BytesIO()
    Image.fromarray(stored).save(file, kind, exif=exif)
    for name, flags in (
        ("IMREAD_UNCHANGED", cv2.IMREAD_UNCHANGED),
        ("IMREAD_IGNORE_ORIENTATION", cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION),
    ):
        read = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), flags)
        print(kind, name, read.tolist())
        changed |= not np.array_equal(read, expected)
raise SystemExit(changed)
PYTHON
