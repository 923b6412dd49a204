# Sourced by the other scripts: makes .venv with all that the project needs, once, and again when pyproject.toml changed.
# NEEDS are the programs that the caller wants, as PROGRAM:DEBIAN-PACKAGE. What is missing is installed when we are root,
# and named otherwise.

python=${NETBORE_PYTHON:-python3}
PATH=$PATH:/usr/sbin:/sbin # where Debian keeps servers

say() { printf '%s\n' "$*" >&2; }

need_python() {
    if [ -z "${NETBORE_PYTHON:-}" ] && ! command -v "$python" >/dev/null; then
        install_packages python3 python3-venv
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        say "Netbore needs Python 3.11 or newer as '$python' (NETBORE_PYTHON=... names another)"
        exit 1
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        install_packages "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    fi
}

need_programs() {
    local missing=() need
    for need in ${NEEDS:-}; do
        command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
    done
    [ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
}

install_packages() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        say "please install first: $*   (Debian, Ubuntu: sudo apt-get install $*)"
        exit 1
    fi
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -o DPkg::Lock::Timeout=200 update -qq >&2
    apt-get -o DPkg::Lock::Timeout=200 install -y -qq --no-install-recommends "$@" >/dev/null
}

# make_venv '' or make_venv '[dev]': the second is good for the first too.
make_venv() {
    local sum stamp
    sum=$(cksum <pyproject.toml)
    stamp=$(cat .venv/netbore-stamp 2>/dev/null || true)
    if [ "$stamp" != "$sum [dev]" ] && [ "$stamp" != "$sum $1" ]; then
        say "preparing .venv (once)"
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        .venv/bin/python -m pip install -q --disable-pip-version-check -e ".$1" >&2
        echo "$sum $1" >.venv/netbore-stamp
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate
}
