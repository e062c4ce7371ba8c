#!/usr/bin/env bash
# Makes the two images that the Dockerfiles begin from, where no registry has them.

set -euo pipefail

readonly BASE=debian:bookworm-slim
readonly RUST=rust:1-bookworm
readonly SUITE=bookworm
# Where Debian keeps certificates that were added on a machine (update-ca-certificates(8)).
readonly LOCAL_CAS=/usr/local/share/ca-certificates
# A registry that does not answer is given up.
readonly PULL_SECONDS=60

usage() {
    cat <<'END'
Makes debian:bookworm-slim and rust:1-bookworm, where they are not there and cannot be pulled: a minimal Debian from
the machine's own package source, and on it the Rust that is installed on the machine.

Usage: docker/base-images.sh [--no-pull]

  --no-pull   do not ask a registry first
  --help      print this

Images that are there are left alone. Into both go the certificates that were added on this machine (those
in /usr/local/share/ca-certificates), so that downloads work in them as they do outside.

Examples:
  docker/base-images.sh
  docker image rm rust:1-bookworm && docker/base-images.sh --no-pull   after the machine's Rust has changed

Exit status: 0 both are there, 2 they cannot be made, 3 no engine answers.
END
}

say() { printf '%s\n' "$*" >&2; }

die() {
    local status=$1
    shift
    say "base-images.sh: $*"
    exit "$status"
}

pull=yes
for word in "$@"; do
    case $word in
    --no-pull) pull=no ;;
    --help | -h)
        usage
        exit 0
        ;;
    *) die 2 "'$word' is not an option; --help says what is" ;;
    esac
done

command -v docker >/dev/null || die 3 "docker is not there: install an engine (Debian: apt-get install docker.io)"
reason=$(timeout 20 docker version --format '{{.Server.Version}}' 2>&1) ||
    die 3 "no Docker engine answers (${reason##*$'\n'}): start one, or set DOCKER_HOST"

folder=$(mktemp -d)
container=
finish() {
    [ -z "$container" ] || docker rm --force "$container" >/dev/null 2>&1 || true
    rm -rf "$folder"
}
trap finish EXIT

# present IMAGE: whether it is there, or comes from a registry.
present() {
    if docker image inspect "$1" >/dev/null 2>&1; then
        say "$1 is there"
        return
    fi
    [ "$pull" = yes ] || return 1
    say "$1: asking the registry"
    if timeout "$PULL_SECONDS" docker pull --quiet "$1" >"$folder/pull" 2>&1; then
        say "$1 is there, pulled"
        return
    fi
    say "$1 cannot be pulled ($(tail -n 1 "$folder/pull" | cut -c 1-160))"
    return 1
}

install_mmdebstrap() {
    ! command -v mmdebstrap >/dev/null || return 0
    [ "$(id -u)" -eq 0 ] || die 2 "mmdebstrap is not there, and this is not root: apt-get install mmdebstrap"
    say "installing mmdebstrap"
    {
        apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap
    } >"$folder/apt" 2>&1 || die 2 "mmdebstrap cannot be installed: $(tail -n 1 "$folder/apt")"
}

# The machine's package sources that have this Debian. None: mmdebstrap's own choice.
sources() {
    local list parts file
    eval "$(apt-config shell list Dir::Etc::sourcelist/f parts Dir::Etc::sourceparts/d)"
    for file in "${list:-}" "${parts%/}"/*.list "${parts%/}"/*.sources; do
        [ -r "$file" ] || continue
        case $file in
        *.sources)
            grep -Eq "^Suites:.*\b$SUITE( |\$)" "$file" || continue
            grep -Eq '^Components:.*\bmain\b' "$file" || continue
            ;;
        *) grep -Eq "^deb .* $SUITE main" "$file" || continue ;;
        esac
        printf '%s\n' "$file"
    done
}

make_base() {
    install_mmdebstrap
    local options=() mirrors=() line
    mapfile -t mirrors < <(sources)
    say "$BASE: from ${mirrors[*]:-the public archive}"
    # A proxy that apt goes through here.
    while read -r line; do
        options+=(--aptopt="$line")
    done < <(apt-config dump 2>/dev/null | grep -E '^Acquire::https?::Proxy ' | grep -v '""' || true)
    # shellcheck disable=SC2016 # $1 is the new system's folder, for the shell that mmdebstrap starts.
    if [ -n "$(find "$LOCAL_CAS" -name '*.crt' -print -quit 2>/dev/null)" ]; then
        options+=(--customize-hook="copy-in $LOCAL_CAS ${LOCAL_CAS%/*}" --customize-hook='chroot "$1" update-ca-certificates')
    fi
    mmdebstrap --quiet --variant=minbase --include=ca-certificates \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "${options[@]}" "$SUITE" "$folder/base.tar" "${mirrors[@]}" 2>"$folder/mmdebstrap" ||
        die 2 "mmdebstrap: $(grep '^E:' "$folder/mmdebstrap" | tail -n 1 || tail -n 1 "$folder/mmdebstrap")"
    docker import --change 'CMD ["bash"]' --message 'made by base-images.sh' "$folder/base.tar" "$BASE" >/dev/null
    rm "$folder/base.tar"
    say "$BASE is there, made here"
}

make_rust() {
    local sysroot host
    command -v rustc >/dev/null || die 2 "$RUST: rustc is not there: install stable Rust with rustup, or pull the image"
    sysroot=$(rustc --print sysroot)
    host=$(rustc -vV | sed -n 's/^host: //p')
    # A distribution's Rust is strewn over /usr, and older than what this project needs.
    [[ -x $sysroot/bin/cargo && $sysroot != /usr ]] ||
        die 2 "$RUST: the Rust in $sysroot is not in a folder of its own: install it with rustup, or pull the image"
    say "$RUST: from $BASE and $(rustc --version)"
    container=$(docker create "$BASE" sh -c 'apt-get update -qq &&
        apt-get install -y -qq --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* && mkdir /usr/local/rust')
    docker start --attach "$container" >"$folder/apt" 2>&1 ||
        die 2 "$RUST: gcc cannot be installed in it: $(grep -E '^(E|W):' "$folder/apt" | tail -n 1)"
    # Other targets, of the same Rust, are left out.
    local others=() target
    for target in "$sysroot"/lib/rustlib/*/lib; do
        target=$(basename "$(dirname "$target")")
        [ "$target" = "$host" ] || others+=(--exclude="lib/rustlib/$target")
    done
    tar -C "$sysroot" "${others[@]}" -cf - bin lib libexec | docker cp - "$container:/usr/local/rust"
    docker commit --message 'made by base-images.sh' --change 'CMD ["bash"]' \
        --change 'ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        "$container" "$RUST" >/dev/null
    docker rm "$container" >/dev/null
    container=
    say "$RUST is there, made here"
}

present "$BASE" || make_base
present "$RUST" || make_rust
