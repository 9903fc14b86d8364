# Sourced by run, test, check, bench, soak, attack and fuzz: creates .venv and updates it when pyproject.toml changes.
# Works with Bash 3.2.
#
# PYTHON names the interpreter to use. CMAKE_ARGS is passed to the build of llama-cpp-python. When it changes,
# llama-cpp-python is built again.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
STAMP=$VENV/installed # "<checksum of pyproject.toml>:<extras>", written when an installation is complete
BUILT_WITH=$VENV/cmake-args # the user's CMAKE_ARGS of the last build, without LEAVES_OUT
LOG=$VENV/install.log
ENGINE=$(grep -o 'llama-cpp-python==[0-9.]*' "$ROOT/pyproject.toml")
# Skips parts of llama.cpp that no installed library uses. CMAKE_ARGS is split as in a shell; the quotes protect spaces in
# the path.
LEAVES_OUT="-DCMAKE_PROJECT_llama.cpp_INCLUDE=\"$ROOT/scripts/llama_cpp_parts.cmake\""

fail() {
  echo "scripts/$(basename -- "$0"): $*" >&2
  exit 1
}

# ensure_installed EXTRAS: returns at once if nothing has changed since the last call.
ensure_installed() {
  local extra=$1 wanted installed cmake_args
  wanted=$(cksum < "$ROOT/pyproject.toml" | tr -d ' ')
  installed=$(cat "$STAMP" 2> /dev/null || true)
  extra=$(extras "$extra" "${installed#*:}") # an extra stays installed
  cmake_args=${CMAKE_ARGS-$(built_with)}
  if [ "$installed" = "$wanted:$extra" ] && [ "$cmake_args" = "$(built_with)" ] && [ -x "$VENV/bin/python" ]; then
    return
  fi
  make_venv
  rm -f "$STAMP"
  has_engine || need_compiler
  # pip's cache ignores CMAKE_ARGS and compilers, so only the plain build may use it. A wheel that was built without
  # LEAVES_OUT can be used too: it contains the same files.
  if [ "$cmake_args" != "$(built_with)" ] || { ! has_engine && { [ -n "$cmake_args" ] || fails_with_amx; }; }; then
    build_engine "$cmake_args"
  fi
  echo "Installing into .venv"
  CMAKE_ARGS=$LEAVES_OUT install -e "$ROOT${extra:+[$extra]}"
  echo "$wanted:$extra" > "$STAMP"
}

# extras LIST LIST: merges two comma-separated lists and sorts the result.
extras() { printf '%s\n' "$@" | tr ',' '\n' | sort -u | sed '/^$/d' | paste -sd, -; }

built_with() { cat "$BUILT_WITH" 2> /dev/null || true; }

# Is the version from pyproject.toml installed?
has_engine() { ls -d "$VENV"/lib/python*/site-packages/llama_cpp_python-"${ENGINE#*==}".dist-info > /dev/null 2>&1; }

make_venv() {
  "$VENV/bin/python" -c "import pip" 2> /dev/null && return
  local python
  python=$(find_python) || fail "Python 3.11 or newer is needed, but none was found. Set PYTHON=/path/to/python to name one."
  "$python" -c "import ensurepip, venv" 2> /dev/null ||
    fail "$python cannot create virtual environments; on Debian and Ubuntu: apt install python3-venv"
  echo "Creating .venv with $("$python" -V)"
  "$python" -m venv --clear "$VENV" || fail "$python -m venv failed"
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do
    if "$candidate" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2> /dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

need_compiler() {
  any_command ${CC:-cc gcc clang} || fail "a C compiler is needed to build llama.cpp; on Debian and Ubuntu: apt install build-essential"
  any_command ${CXX:-c++ g++ clang++} || fail "a C++ compiler is needed to build llama.cpp; on Debian and Ubuntu: apt install build-essential"
}

any_command() {
  local name
  for name; do command -v "$name" > /dev/null && return; done
  return 1
}

# Some compilers produce broken AMX code for llama.cpp: SIGILL at the first prompt (llama.cpp's pull request 26954).
fails_with_amx() {
  local cxx=${CXX:-c++} probe=$VENV/amx-probe macros
  macros=$("$cxx" -march=native -dM -E -x c++ /dev/null 2> /dev/null) || return 1
  [[ $macros == *__AMX_TILE__* ]] || return 1
  "$cxx" -O3 -march=native "$ROOT/scripts/amx_probe.cpp" -o "$probe" 2> /dev/null || return 1
  ! bash -c '"$1"; exit $?' - "$probe" > /dev/null 2>&1
}

# build_engine CMAKE_ARGS: builds without pip's cache. The user's arguments come last, so they override the others.
build_engine() {
  local without=""
  need_compiler
  if fails_with_amx; then
    echo "This compiler's AMX code does not run on this machine: llama.cpp is built without AMX."
    without=" -mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
  fi
  echo "Building llama-cpp-python with CMAKE_ARGS=$1"
  CFLAGS=${CFLAGS-}$without CXXFLAGS=${CXXFLAGS-}$without CMAKE_ARGS="$LEAVES_OUT $1" \
    install --force-reinstall --no-deps --no-cache-dir "$ENGINE"
  echo "$1" > "$BUILT_WITH"
}

install() {
  "$VENV/bin/python" -m pip install --disable-pip-version-check --verbose "$@" 2>&1 | tee "$LOG" | show_progress
  [ "${PIPESTATUS[0]}" = 0 ] || fail "the installation failed; see the full log in ${LOG#"$ROOT"/}"
}

# Filters pip's output: shows downloads, errors and the progress of the compiler.
show_progress() {
  local line since=0 counted=0 tenth=0 drawn=""
  while IFS= read -r line; do
    if [[ $line =~ ^\ *\[\ *([0-9]+)(/([0-9]+)|%)\] ]]; then # Ninja: [59/125], make: [ 47%]
      compiled "${BASH_REMATCH[1]}" "${BASH_REMATCH[3]:-100}"
      continue
    fi
    case $line in
      *"Building wheel for llama-cpp-python"*started)
        line="llama.cpp is compiled on the way. For the CPU alone that takes three to four minutes on two cores." ;;
      *rror:* | Collecting\ * | "Successfully installed"*) ;;
      *) continue ;;
    esac
    printf '%s%s\n' "$drawn" "${line:0:160}"
    drawn=""
  done
}

# compiled DONE TOTAL: on a terminal it redraws a progress bar, elsewhere it prints a line every 10 %. It uses the
# variables of show_progress.
compiled() {
  local done=$1 total=$2 percent left="" bar="####################--------------------"
  [ "$total" -ge 20 ] || return 0 # ignore the separate counts of CMake's compiler checks and of helpers of a GPU build
  if [ "$total" != "$counted" ]; then
    counted=$total since=$SECONDS tenth=0
  fi
  percent=$((done * 100 / total))
  if [ "$percent" -ge 5 ] && [ "$done" -lt "$total" ]; then # before 5 % the estimate is not stable
    left="  $(time_left $(((SECONDS - since) * (total - done) / done)))"
  fi
  if [ -t 1 ]; then # under 80 columns: a longer line would wrap and could not be redrawn
    printf '\r  compiling  [%s]  %d %%  %s%s\033[K' "${bar:20-percent/5:20}" "$percent" "$done/$total" "$left"
    drawn=$'\n'
  elif [ $((percent / 10)) != "$tenth" ]; then
    tenth=$((percent / 10))
    printf '  compiling llama.cpp  %d %%  %s%s\n' "$percent" "$done/$total" "$left"
  fi
}

# time_left SECONDS: rounded up to the next ten seconds; from ten minutes on only minutes.
time_left() {
  local tens=$((($1 / 10 + 1) * 10))
  if [ "$tens" -ge 600 ]; then
    echo "about $((tens / 60)) min left"
  elif [ "$tens" -ge 60 ]; then
    echo "about $((tens / 60)) min $((tens % 60)) s left"
  else
    echo "about $tens s left"
  fi
}
