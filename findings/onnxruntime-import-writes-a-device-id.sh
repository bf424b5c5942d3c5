#!/bin/sh
# onnxruntime 1.32.0 on Linux: `import onnxruntime` alone writes into the user's cache, before any model is loaded and
# before `onnxruntime.disable_telemetry_events()` can be called: an id of the device and a database of events that wait
# to be sent. With ORT_DISABLE_TELEMETRY=1 set before the import nothing is written.
#
# Who ships a segmentation network as ONNX to machines with a read-only home or without a way out, or promises that
# pictures and their users stay private, sets the variable before the first import; the function comes too late.
#
# Source: seen by running it; the package's own Privacy.md says that telemetry is on by default.
#
# Output seen:
#   import: .onnxruntime/deviceid .onnxruntime/onnxruntime.db
#   import, then disable_telemetry_events(): .onnxruntime/deviceid .onnxruntime/onnxruntime.db
#   ORT_DISABLE_TELEMETRY=1: nothing
#
# Exit 0: it behaves so. Exit 1: no longer.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 numpy==2.4.6
cd "$folder"
mkdir tmp

written() {  # written HOME PROGRAM [NAME=VALUE]: what lies under HOME afterwards
    mkdir "$1"
    env -u XDG_CACHE_HOME -u ORT_DISABLE_TELEMETRY HOME="$folder/$1" TMPDIR="$folder/tmp" ${3:-} venv/bin/python -c "$2"
    (cd "$1" && find . -type f \( -name deviceid -o -name onnxruntime.db \) | sort | sed 's|.*/\(.*/\)|\1|' | xargs)
    [ -z "$(find "$1" -type f)" ] && echo nothing || true
}

plain=$(written plain "import onnxruntime")
late=$(written late "import onnxruntime; onnxruntime.disable_telemetry_events()")
off=$(written off "import onnxruntime" ORT_DISABLE_TELEMETRY=1 | xargs)
both=".onnxruntime/deviceid .onnxruntime/onnxruntime.db"
echo "import: $plain"
echo "import, then disable_telemetry_events(): $late"
echo "ORT_DISABLE_TELEMETRY=1: $off"
[ "$plain" = "$both" ] && [ "$late" = "$both" ] && [ "$off" = nothing ]
