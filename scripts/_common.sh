# Shared by the scripts of this directory; sourced, not run. Needs bash and POSIX tools.
# shellcheck shell=bash

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${FREEHOLD_VENV:-$ROOT/.venv}"
STAMP="$VENV/freehold.stamp"
TORCH_REQUIREMENT="${FREEHOLD_TORCH:-torch==2.13.0}"
NEEDED_DISK_KIB=$((4 * 1024 * 1024))

say() { printf '%s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$1" >&2
  shift
  for line in "$@"; do printf '       %s\n' "$line" >&2; done
  exit 1
}

# Prints the first interpreter that is new enough for pyproject.toml's requires-python.
find_python() {
  local candidate
  for candidate in ${FREEHOLD_PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  die "no Python >= 3.10 found." \
    "Install one (Debian, Ubuntu: apt install python3 python3-venv; Fedora: dnf install python3)," \
    "or name one: FREEHOLD_PYTHON=/path/to/python3 $0"
}

need_compiler() {
  local candidate
  for candidate in ${CXX:-} c++ g++ clang++; do
    if command -v "$candidate" >/dev/null 2>&1; then return; fi
  done
  die "no C++ compiler found (looked for ${CXX:+$CXX, }c++, g++, clang++)." \
    "Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or name one: CXX=/path/to/c++ $0"
}

need_disk() {
  local free
  free="$(df -Pk "$ROOT" | awk 'NR == 2 { print $4 }')"
  if [ "$free" -lt "$NEEDED_DISK_KIB" ]; then
    die "$((free / 1024)) MiB are free on the disk of $ROOT; installing needs $((NEEDED_DISK_KIB / 1024)) MiB." \
      "Free some space, or put the environment elsewhere: FREEHOLD_VENV=/path/on/another/disk $0"
  fi
}

make_venv() {
  if [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
  local python
  python="$(find_python)"
  if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    die "$python has no working venv module." "Debian, Ubuntu: apt install python3-venv"
  fi
  say "Making $VENV with $python"
  "$python" -m venv --clear "$VENV" || die "$python could not make the environment $VENV (see above)."
}

pip_install() {
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --retries 2 "$@" ||
    die "pip could not install: $* (see above)." \
      "Installing needs a Python package index, once: the network, or a mirror named by PIP_INDEX_URL." \
      "Later starts need neither."
}

# Torch by itself, first: it is the largest part, and the one that may come from another index.
install_torch() {
  say "Installing $TORCH_REQUIREMENT (a few hundred MB, once)"
  if [ -n "${FREEHOLD_TORCH_INDEX:-}" ]; then
    pip_install --index-url "$FREEHOLD_TORCH_INDEX" "$TORCH_REQUIREMENT"
  else
    pip_install "$TORCH_REQUIREMENT"
  fi
}

# One number for this clone's place and the contents of the named files and directories, caches left out.
hash_of() {
  local path
  (
    cd "$ROOT"
    for path in "$@"; do
      if [ -e "$path" ]; then
        find "$path" \( -name __pycache__ -o -name '*.egg-info' \) -prune -o -type f ! -name '*.so' -exec cksum {} +
      fi
    done
  ) | LC_ALL=C sort | { printf "%s\n" "$ROOT"; cat; } | cksum | tr ' ' '-'
}

# An editable install (the tests') sees changes of src/ by itself; a plain one does not.
build_hash() { hash_of pyproject.toml CMakeLists.txt native; }
source_hash() { hash_of pyproject.toml CMakeLists.txt native src; }
installed() {
  [ -x "$VENV/bin/python" ] && [ -x "$VENV/bin/freehold" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$1" ]
}

install_to_run() {
  if installed "run $(source_hash)" || installed "test $(build_hash)"; then return; fi
  need_compiler
  need_disk
  make_venv
  rm -f "$STAMP"
  install_torch
  say "Building Freehold (a minute or two, once)"
  pip_install "$ROOT"
  printf 'run %s\n' "$(source_hash)" >"$STAMP"
}

install_to_test() {
  if installed "test $(build_hash)"; then return; fi
  need_compiler
  need_disk
  make_venv
  rm -f "$STAMP"
  install_torch
  say "Building Freehold with its test tools"
  pip_install --editable "$ROOT[test,browser,evaluation,clients]"
  printf 'test %s\n' "$(build_hash)" >"$STAMP"
}

# The rivals of the benchmarks and parity tests are compiled here; without them their tests say that they were skipped.
install_rivals() {
  local requirement limit="${FREEHOLD_RIVALS_SECONDS:-900}"
  if [ "${FREEHOLD_TEST_RIVALS:-1}" = 0 ]; then
    say "Left out the rivals: FREEHOLD_TEST_RIVALS=0"
    return
  fi
  "$VENV/bin/python" - <<'PYTHON' | while IFS= read -r requirement; do
from importlib.metadata import PackageNotFoundError, requires, version
for line in requires("freehold") or ():
    requirement, _, marker = line.partition(";")
    if "rivals" in marker:
        name = requirement.split(">")[0].split("=")[0].split("<")[0].strip()
        try:
            version(name)
        except PackageNotFoundError:
            print(requirement.strip())
PYTHON
    say "Installing $requirement (compiled here: a few minutes, once, at most $limit s)"
    if ! timeout "$limit" "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$requirement" </dev/null; then
      say "Going on without $requirement: it could not be installed within $limit s (see above)."
    fi
  done
}

# Coding agents of other makers, some hundred MB each; without them their tests say that they were skipped.
AGENTS="@openai/codex@0.169.0 @anthropic-ai/claude-code@2.1.331 opencode-ai@1.18.33"
install_agents() {
  local agent folder="${FREEHOLD_CLIENTS_DIR:-$ROOT/build/clients}" limit="${FREEHOLD_AGENTS_SECONDS:-300}"
  if ! command -v npm >/dev/null 2>&1; then
    say "Going on without coding agents: there is no npm (Debian, Ubuntu: apt install nodejs npm)."
    return
  fi
  mkdir -p "$folder"
  for agent in $AGENTS; do
    if grep -qsxF "$agent" "$folder/installed"; then continue; fi
    say "Installing $agent (once, at most $limit s)"
    if timeout "$limit" npm install --prefix "$folder" --no-audit --no-fund --no-update-notifier --loglevel=error \
      "$agent" </dev/null >&2; then
      printf '%s\n' "$agent" >>"$folder/installed"
    else
      say "Going on without $agent: npm could not install it within $limit s (see above)."
    fi
  done
}

# The version that CMakeLists.txt asks for.
has_cmake() {
  command -v cmake >/dev/null 2>&1 &&
    cmake --version | awk '/version/ { split($3, v, "."); exit !(v[1] > 3 || v[2] >= 20) }'
}

# Builds and runs the C++ tests in a build tree of their own: [name of the tree, further CMake definitions].
native_tests() {
  local build="$ROOT/build/native-tests${1:+-$1}"
  if [ "$#" -gt 0 ]; then shift; fi
  mkdir -p "$ROOT/build"
  local PATH="$VENV/bin:$PATH"
  has_cmake || { make_venv; pip_install "cmake>=3.20"; }
  command -v ninja >/dev/null 2>&1 || { make_venv; pip_install ninja; }
  cmake -S "$ROOT" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFREEHOLD_NATIVE_TESTS=ON "$@" >"$build.log" 2>&1 ||
    { cat "$build.log" >&2; die "CMake could not configure the native tests (see above)."; }
  cmake --build "$build" || die "the native tests do not compile (see above)."
  ctest --test-dir "$build" --output-on-failure || die "native tests failed (see above)."
}
