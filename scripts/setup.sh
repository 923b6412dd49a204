# Sourced by the other scripts: makes .venv with all that the project needs, once, and again when pyproject.toml changed.
# The Debian packages that the caller names in NEEDS are installed when we are root, and named otherwise.

python=${NETBORE_PYTHON:-python3}

need_packages() {
    local missing=()
    for package in ${NEEDS:-}; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "installing ${missing[*]}" >&2
        export DEBIAN_FRONTEND=noninteractive
        apt-get -o DPkg::Lock::Timeout=200 update -qq >&2
        apt-get -o DPkg::Lock::Timeout=200 install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "please install these packages first: ${missing[*]}" >&2
        exit 1
    fi
}

need_python() {
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "Netbore needs Python 3.11 or newer as '$python' (set NETBORE_PYTHON to name another)" >&2
        exit 1
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        NEEDS="python3-venv ${NEEDS:-}"
    fi
}

make_venv() {
    local extras=$1 stamp
    stamp=$(cat pyproject.toml | cksum)-$extras
    if [ "$(cat .venv/netbore-stamp 2>/dev/null)" != "$stamp" ]; then
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        .venv/bin/python -m pip install -q --disable-pip-version-check -e ".$extras" >&2
        echo "$stamp" > .venv/netbore-stamp
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate
}
