#!/usr/bin/env bash
# Builds chat.cpp against the libraries in the Python environment: build.sh OUTPUT [PYTHON]
set -euo pipefail
out=${1:?usage: build.sh OUTPUT [PYTHON]}
python=${2:-python3}
here=$(cd "$(dirname "$0")" && pwd)
genai=$("$python" -c 'import importlib.util as u; print(u.find_spec("onnxruntime_genai").submodule_search_locations[0])')
ort=$("$python" -c 'import importlib.util as u; print(u.find_spec("onnxruntime").submodule_search_locations[0])')/capi
# The wheel's library has its version in its name; genai opens it by the plain one, beside OUTPUT.
mkdir -p "$out.libs"
ln -sf "$genai/libonnxruntime-genai.so" "$out.libs/"
for lib in "$ort"/libonnxruntime*.so*; do
  ln -sf "$lib" "$out.libs/$(basename "$lib")"
done
ln -sf "$(ls "$ort"/libonnxruntime.so.* | head -n 1)" "$out.libs/libonnxruntime.so"
# Old-style tags, so that what genai opens itself is looked for there as well.
g++ -std=c++17 -O2 -Wall -Wextra "$here/chat.cpp" -o "$out" -L"$out.libs" -lonnxruntime-genai \
  -Wl,--disable-new-dtags -Wl,-rpath,"$(cd "$out.libs" && pwd)"
