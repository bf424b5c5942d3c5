#!/bin/sh
# rasterio 1.4.4: `rasterio.warp.transform` of points into degrees raises errors of GDAL as they are, of the private
# module `rasterio._err`, where the coordinate system has no place on the Earth (a building site's own, as drones and
# CAD write it) or a point lies outside the projection. They derive from Exception alone, so that neither
# `except rasterio.errors.RasterioError` nor `except ValueError` nor `except OSError` catches them.
#
# Who writes the outlines of a segmented orthomosaic as GeoJSON, or areas of its pixels, must catch Exception there or
# import `rasterio._err.CPLE_BaseError`.
#
# Source: seen by running it; the classes stand in rasterio/_err.pyx.
#
# Output seen:
#   local system: rasterio._err.CPLE_NotSupportedError, of ['CPLE_BaseError', 'Exception']
#   outside the projection: rasterio._err.CPLE_AppDefinedError, of ['CPLE_BaseError', 'Exception']
#
# Exit 0: it behaves so. Exit 1: no longer.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rasterio==1.4.4 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
from rasterio.crs import CRS
from rasterio.warp import transform

LOCAL = 'LOCAL_CS["building site",UNIT["metre",1]]'


def raised(crs, x, y):
    try:
        transform(crs, CRS.from_epsg(4326), [x], [y])
    except Exception as error:
        kind = type(error)
        return f"{kind.__module__}.{kind.__name__}, of {[base.__name__ for base in kind.__mro__[1:-2]]}"
    return "nothing"


local = raised(CRS.from_wkt(LOCAL), 1.0, 1.0)
outside = raised(CRS.from_epsg(25832), 1e9, 1e9)
print("local system:", local)
print("outside the projection:", outside)
kin = "of ['CPLE_BaseError', 'Exception']"
expected = (f"rasterio._err.CPLE_NotSupportedError, {kin}", f"rasterio._err.CPLE_AppDefinedError, {kin}")
raise SystemExit((local, outside) != expected)
PYTHON
