#!/bin/sh
# rasterio 1.4.4 (GDAL as its wheel has it) and Pillow 13.0.0 (numpy 2.4.6): a GeoTIFF of 16-bit class ids with a colour
# table, which GDAL writes and reads back with its colours, is "cannot identify image file" to Pillow. The same ids of
# 8 bits with a table, and of 16 bits without one, are read by both.
#
# Label rasters of more than 255 classes (parcels, tiles of land cover) that carry their colours open in GIS and fail in
# every program that reads masks by Pillow; without the table they are plain grey and open in both.
#
# Source: seen by running it. TIFF 6.0 allows palette-colour pictures of 4 and 8 bits only; GDAL writes 16 too.
#
# Output seen:
#   8 bits, table: GDAL ids kept, Pillow P
#   16 bits, no table: GDAL ids kept, Pillow I;16
#   16 bits, table: GDAL ids kept, Pillow UnidentifiedImageError
#
# Exit 0: it behaves so. Exit 1: no longer.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 pillow==13.0.0 rasterio==1.4.4
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import rasterio
from PIL import Image, UnidentifiedImageError

changed = False
for bits, table, expected in ((8, True, "P"), (16, False, "I;16"), (16, True, "UnidentifiedImageError")):
    ids = np.arange(6, dtype=f"uint{bits}").reshape(2, 3)
    name = f"{bits}-{table}.tif"
    with rasterio.open(name, "w", driver="GTiff", width=3, height=2, count=1, dtype=ids.dtype) as file:
        # Before the ids: afterwards the table would lie in a file beside.
        if table:
            file.write_colormap(1, {value: (40 * value, 200 - 30 * value, 9, 255) for value in range(6)})
        file.write(ids, 1)
    with rasterio.open(name) as file:
        kept = np.array_equal(file.read(1), ids)
        assert not table or file.colormap(1)[3][:3] == (120, 110, 9)
    try:
        with Image.open(name) as picture:
            found = picture.mode
    except UnidentifiedImageError as error:
        found = type(error).__name__
    print(f"{bits} bits, {'table' if table else 'no table'}: GDAL ids {'kept' if kept else 'changed'}, Pillow {found}")
    changed |= not kept or found != expected
raise SystemExit(changed)
PYTHON
