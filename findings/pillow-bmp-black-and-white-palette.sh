#!/bin/sh
# Pillow 13.0.0 (numpy 2.4.6, OpenCV 5.0.0.93 to compare): a BMP of 8 bits a pixel whose palette is black and white is
# opened in mode 1, and each of its bytes is taken for eight pixels.
#
# Pillow's own file of a palette image with the palette black, white comes back with other pixels. OpenCV reads it
# rightly. Only the two colours of the palette decide: BmpImagePlugin chooses mode 1 by them and then unpacks bits,
# although the header says 8 bits a pixel. (With white before black, or a third colour, it is read rightly.)
#
# Source: seen by running it. https://github.com/python-pillow/Pillow/pull/9778 tells of the choice of mode 1.
#
# Output seen:
#   stored [0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 0, 0]
#   Pillow [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] in mode 1
#   OpenCV [0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 0, 0] (255 as 1)
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

stored = np.array([[0, 1, 0, 1, 1, 1, 0, 0] * 2] * 2, np.uint8)
picture = Image.fromarray(stored, "P")
picture.putpalette([0, 0, 0, 255, 255, 255])
file = io.BytesIO()
picture.save(file, "BMP")
opened = Image.open(io.BytesIO(file.getvalue()))
by_pillow = np.array(opened).astype(int)
by_opencv = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_GRAYSCALE) // 255
print("stored", stored[0].tolist())
print("Pillow", by_pillow[0].tolist(), "in mode", opened.mode)
print("OpenCV", by_opencv[0].tolist(), "(255 as 1)")
raise SystemExit(np.array_equal(by_pillow, stored) or not np.array_equal(by_opencv, stored))
PYTHON
