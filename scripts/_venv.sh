# Sourced by scripts/demo and scripts/test. Sets:
#   root         the project's root
#   venv_python  the interpreter of its .venv
# and defines ensure_venv, which makes .venv and installs lrpguard into it, and ensure_layer, which
# makes an environment on top of it. Both do nothing when that was done before. To start over,
# remove .venv.

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"
venv_python="$venv/bin/python"
stamp="$venv/lrpguard-installed" # line 1: fingerprint; line 2: the extras installed

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

make_venv() {
  local python="${PYTHON:-python3}"
  command -v "$python" >/dev/null ||
    fail "lrpguard needs Python 3.11 or newer, but there is no '$python' here." \
      "Install one, or name it: PYTHON=python3.12 bash $0"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "lrpguard needs Python 3.11 or newer, but '$python' is $("$python" --version 2>&1)." \
      "Install a newer one, or name it: PYTHON=python3.12 bash $0"
  echo "Making .venv. This happens once, and takes some minutes: PyTorch is large." >&2
  if ! "$python" -m venv "$venv" >&2; then
    rm -rf "$venv"
    fail "'$python -m venv' failed. On Debian and Ubuntu it needs: sudo apt install python3-venv"
  fi
}

# Prints a hash of what decides whether an earlier installation still holds. Fails where .venv is
# no virtual environment with pip and a new enough Python.
fingerprint() {
  "$venv_python" -c '
import hashlib, pathlib, sys
import pip
if sys.version_info < (3, 11) or sys.prefix == sys.base_prefix:
    sys.exit(1)
root = sys.argv[1]
parts = [root, sys.version, pathlib.Path(root, "pyproject.toml").read_text(encoding="utf-8")]
print(hashlib.sha256(repr(parts).encode()).hexdigest())
' "$root" 2>/dev/null
}

# ensure_venv EXTRA...: .venv exists and has lrpguard with these extras, and those it had before.
ensure_venv() {
  [ -e "$venv" ] || make_venv
  local current stamped="" installed="" wanted extra
  current="$(fingerprint)" ||
    fail "$venv is there, but is no working virtual environment with pip and Python 3.11 or" \
      "newer. Remove it, and run this again."
  if [ -f "$stamp" ]; then
    { read -r stamped && read -r installed; } <"$stamp" || true
  fi
  [ "$stamped" = "$current" ] || installed=""
  wanted="$installed"
  for extra in "$@"; do
    case " $wanted " in
      *" $extra "*) ;;
      *) wanted="${wanted:+$wanted }$extra" ;;
    esac
  done
  if [ "$wanted" = "$installed" ]; then
    return
  fi
  rm -f "$stamp"
  (cd "$root" && "$venv_python" -m pip install -e ".[${wanted// /,}]" >&2)
  printf '%s\n%s\n' "$current" "$wanted" >"$stamp"
}

# ensure_layer NAME PACKAGE...: .venv/NAME has these packages, and all that .venv has, except where
# these want other versions. Sets layer_python. pip tells of the clashes; here they do no harm.
ensure_layer() {
  local layer="$venv/$1" wanted
  shift
  layer_python="$layer/bin/python"
  wanted="$(fingerprint) $*" || return
  if [ "$(cat "$layer/installed" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  rm -rf "$layer"
  "$venv_python" -m venv "$layer" >&2 || return
  "$venv_python" -c '
import sys, sysconfig
lower = sysconfig.get_path("purelib")
upper = sysconfig.get_path("purelib", vars={"base": sys.argv[1]})
with open(upper + "/below.pth", "w", encoding="utf-8") as file:
    print(f"import site; site.addsitedir({lower!r})", file=file)
' "$layer" || return
  "$layer_python" -m pip install "$@" >&2 || return
  printf '%s\n' "$wanted" >"$layer/installed"
}
