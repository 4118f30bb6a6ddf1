#!/usr/bin/env bash
# Builds llama.cpp with CUDA from llama-cpp-python's sdist, then runs gpu_check.py on the GPU.
#   benchmarks/gpu_check.sh SDIST.tar.gz [WHEEL ...]
# Needs nvcc, cmake, ninja and a Python with numpy, msgspec, jinja2 and typing_extensions; WHEELs (pure Python, such as
# diskcache) are put on the path. ARCH is the compute capability (default 90), OUT the folder for the figures.
# About 4 minutes of building on 16 cores, 1 of running.
set -euo pipefail
[ $# -ge 1 ] || { sed -n 2,6p "$0" >&2; exit 2; }
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
path=$here:$dir
for wheel in "$@"; do path=$path:$(cd "$(dirname "$wheel")" && pwd)/$(basename "$wheel"); done
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader >"$out/gpu.txt" || true
PYTHONPATH=$path python3 "$here/benchmarks/gpu_check.py" "$out/gpu_check.json"
