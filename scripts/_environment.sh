# shellcheck shell=bash
# Sourced by the scripts beside it. Gives the variable `root` and the function `prepare_environment`.
#
# The environment is .venv in the repository, with the package installed editable at the tested versions. A stamp in it
# says what it was made from, so that a second run installs nothing. It is made with the interpreter that PYTHON names
# (else python3); remove .venv to make it with another one.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

_fail() { # problem, next step
    printf '%s: %s\n  %s\n' "${0##*/}" "$1" "$2" >&2
    exit 2
}

_make_venv() {
    local python="${PYTHON:-python3}"
    command -v "$python" >/dev/null 2>&1 ||
        _fail "no Python found as '$python'." "Install Python 3.11 or newer, or name one: PYTHON=/path/to/python3 scripts/${0##*/}"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        _fail "'$python' is $("$python" --version 2>&1); Python 3.11 or newer is needed." \
            "Name a newer one: PYTHON=/path/to/python3.11 scripts/${0##*/}"
    "$python" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
        _fail "'$python' cannot make virtual environments (venv or ensurepip is missing)." \
            "On Debian and Ubuntu: apt-get install python3-venv"
    rm -rf "$root/.venv"
    mkdir "$root/.venv"
    printf '%s\n' "$root" >"$root/.venv/stamp" # first, so that a half-made environment is known as ours
    "$python" -m venv "$root/.venv"
}

# prepare_environment EXTRAS: make .venv hold the package with these extras ("parquet" or "dev,parquet"). An environment
# that has them among others serves as it is. With LOCK, a file of requirements with hashes (scripts/lock.py makes it), pip
# installs the files that it lists and no others.
prepare_environment() {
    local extras="$1" lock="${LOCK:-}" venv="$root/.venv" files place="" old_files="" old_extras=""
    files="$(cat "$root/pyproject.toml" "$root/constraints.txt" ${lock:+"$lock"} | cksum)"
    if [ -f "$venv/stamp" ]; then
        { read -r place && read -r old_files && read -r old_extras; } <"$venv/stamp" || true
    elif [ -e "$venv" ]; then
        _fail "$venv exists, but was not made by these scripts." "Move it away (or remove it) and run the same command again."
    fi
    # A virtual environment holds its own path, so that one that was moved does not work.
    if [ "$place" != "$root" ] || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        _make_venv
        old_files=""
    fi
    local extra missing=""
    for extra in ${extras//,/ }; do
        case ",$old_extras," in *",$extra,"*) ;; *) missing="$extra" ;; esac
    done
    [ -n "$missing" ] || extras="$old_extras"
    if [ "$files" = "$old_files" ] && [ "$extras" = "$old_extras" ]; then
        return
    fi
    echo "Installing into .venv (a minute or more; only the first time, and when dependencies changed) ..." >&2
    local how=() pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input)
    pip+=(--constraint "$root/constraints.txt")
    if [ -n "$lock" ]; then # an editable package has no hash, so that it is installed after all that has one
        "${pip[@]}" --require-hashes --requirement "$lock" >&2 ||
            _fail "the installation from $lock failed." "The lines above say why. Another system or Python needs another list: python scripts/lock.py > $lock"
        how=(--no-deps --no-build-isolation)
    fi
    "${pip[@]}" "${how[@]}" --editable "$root${extras:+[$extras]}" >&2 ||
        _fail "the installation into .venv failed." "The lines above say why; run the same command again to retry."
    printf '%s\n' "$root" "$files" "$extras" >"$venv/stamp"
}
