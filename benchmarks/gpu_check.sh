#!/usr/bin/env bash
# Builds llama.cpp with CUDA from llama-cpp-python's sdist, then runs gpu_check.py (logits) and gpu_vram.py (VRAM, speed,
# recordings of the monitor) on the GPU.
#   benchmarks/gpu_check.sh SDIST.tar.gz [WHEEL ...]
# Needs nvcc, cmake, ninja, a C++ compiler and a Python of 3.11 or later. WHEELs are what that Python lacks of numpy, msgspec,
# jinja2, markupsafe, typing_extensions, diskcache and nvidia-ml-py; they are unpacked, nothing is installed. ARCH is the
# compute capability (default 90), OUT the folder for figures and recordings, BUILD where to build.
# About 3 minutes of building on 16 cores, 3 of running.
set -euo pipefail
[ $# -ge 1 ] || { sed -n 2,9p "$0" >&2; exit 2; }
sdist=$1
shift
here=$(cd "$(dirname "$0")/.." && pwd)
dir=${BUILD:-/tmp/llama-cuda}
out=${OUT:-.}
mkdir -p "$dir" "$out"
if [ ! -e "$dir/llama_cpp/lib/libllama.so" ]; then
  tar xf "$sdist" -C "$dir" --strip-components=1
  # a C++ runtime that is linked statically into libggml-cuda must stay inside it: libllama crashes on its symbols
  cmake -S "$dir/vendor/llama.cpp" -B "$dir/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="${ARCH:-90}" -DCMAKE_SHARED_LINKER_FLAGS=-Wl,--exclude-libs,ALL \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_CURL=OFF >"$out/cmake.log" 2>&1
  cmake --build "$dir/build" -j"$(nproc)" >"$out/build.log" 2>&1 || { tail -30 "$out/build.log" >&2; exit 1; }
  ln -sfn "$dir/build/bin" "$dir/llama_cpp/lib"
fi
mkdir -p "$dir/wheels"
for wheel in "$@"; do python3 -m zipfile -e "$wheel" "$dir/wheels"; done
export PYTHONPATH=$here:$dir:$dir/wheels
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader >"$out/gpu.txt" || true
status=0
python3 "$here/benchmarks/gpu_check.py" "$out/gpu_check.json" >"$out/gpu_check.log" 2>&1 || status=1
tail -3 "$out/gpu_check.log"
python3 "$here/benchmarks/gpu_vram.py" "$out/gpu_vram.json" --record "$out/recordings" | tee "$out/gpu_vram.log" | cut -c1-400 || status=1
exit $status
