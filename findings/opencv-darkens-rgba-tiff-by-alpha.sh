#!/bin/sh
# OpenCV 5.0.0.93 (numpy 2.4.6, Pillow 13.0.0 to write): the colours of an 8-bit RGBA TIFF with unassociated alpha
# (ExtraSamples 2) are multiplied by alpha, with IMREAD_COLOR and with IMREAD_UNCHANGED. The same pixels as PNG are not.
#
# A picture whose fourth band is called alpha (a transparent canvas, a near-infrared band) is read darker than its PNG,
# and black where alpha is 0. Pillow and GDAL give the stored colours.
#
# Source: seen by running it. https://github.com/opencv/opencv/pull/462 brought alpha to 8-bit TIFFs and does not mention
# it; https://github.com/openslide/openslide/issues/45 asks the same of libtiff's RGBA interface.
#
# Output seen (stored is 200, 100, 50 with alpha 51):
#   PNG IMREAD_COLOR [200, 100, 50]
#   PNG IMREAD_UNCHANGED [200, 100, 50]
#   TIFF IMREAD_COLOR [40, 20, 10]
#   TIFF IMREAD_UNCHANGED [40, 20, 10]
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

stored = np.full((2, 2, 4), (200, 100, 50, 51), np.uint8)
changed = False
for kind, expected in (("PNG", [200, 100, 50]), ("TIFF", [40, 20, 10])):
    file = io.BytesIO()
    Image.fromarray(stored).save(file, kind)
    if kind == "TIFF":
        written = Image.open(io.BytesIO(file.getvalue()))
        assert written.tag_v2[338] == (2,) and np.array_equal(np.array(written), stored)
    for name in ("IMREAD_COLOR", "IMREAD_UNCHANGED"):
        read = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), getattr(cv2, name))[0, 0, 2::-1].tolist()
        print(kind, name, read)
        changed |= read != expected
raise SystemExit(changed)
PYTHON
