#!/usr/bin/env bash
# The load bench in containers: images, a device server, Prometheus, a load with every read compared, a report, and
# nothing left behind.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Until containers are healthy. The first answer takes some seconds.
readonly HEALTH_SECONDS=90
# Until Prometheus has its first sample of the device.
readonly SCRAPE_SECONDS=30
# Job files are small; the load reads no more of them either.
readonly MOST_JOB_BYTES=1048576

usage() {
    cat <<'END'
Runs a load in one container on the disks of a device server in another, watched by Prometheus in a third, and takes
all of it down again. Makes the images first, without a registry if there is none.

Usage: docker/run.sh [OPTIONS]

  --jobs FILE       jobs, as vfio-ccw-bench load reads them [default: docker/jobs/verify.fio]
  --out FOLDER      where results go [default: docker/out]
  --seccomp WHICH   io_uring: only the calls that the programs make; epoll: the same without io_uring;
                    docker: the engine's own profile [default: io_uring]
  --no-build        take the images that are there
  --keep            leave device and Prometheus running, and say how to end them
  --grafana         Grafana, too, and leave all running
  --if-available    where no engine answers say SKIPPED, and succeed
  --help            print this

In the folder are then run.json, report.html, load.log, device.log and those of the builds. TAG, DISK_SIZE, SUBCHANNELS, DRIVER and
PROMETHEUS_PORT are those of compose.yaml, but for the port, which is a free one. CARGO_PROFILE_RELEASE_LTO,
CARGO_PROFILE_RELEASE_CODEGEN_UNITS and CARGO_PROFILE_RELEASE_OPT_LEVEL (off, 16 and 1) make a build that is through sooner.

Examples:
  docker/run.sh
  docker/run.sh --jobs my.fio --seccomp epoll --out results
  docker/run.sh --jobs docker/jobs/short.fio --no-build
  docker/run.sh --keep                     and look at Prometheus afterwards

Exit status: 0 all right; 1 wrong data, or a request failed, was lost or came back twice; 2 it could not be done
as asked; 3 there is no engine, or no compose.
END
}

say() { printf '%s\n' "$*"; }

die() {
    local status=$1
    shift
    printf 'run.sh: %s\n' "$*" >&2
    exit "$status"
}

# absent REASON: there is nothing to run this on.
absent() {
    if [ "$if_available" = yes ]; then
        say "SKIPPED: $*"
        exit 0
    fi
    die 3 "$*"
}

# value OPTION WORDS-LEFT: an option that takes a word has one.
value() { [ "$2" -ge 2 ] || die 2 "$1 needs a value; --help has examples"; }

jobs=$here/jobs/verify.fio
out=$here/out
seccomp=io_uring
build=yes keep=no grafana=no if_available=no
while [ $# -gt 0 ]; do
    case $1 in
    --jobs) value "$1" $# && jobs=$2 && shift ;;
    --out) value "$1" $# && out=$2 && shift ;;
    --seccomp) value "$1" $# && seccomp=$2 && shift ;;
    --no-build) build=no ;;
    --keep) keep=yes ;;
    --grafana) grafana=yes keep=yes ;;
    --if-available) if_available=yes ;;
    --help | -h)
        usage
        exit 0
        ;;
    *) die 2 "'$1' is not an option; --help says what is" ;;
    esac
    shift
done
case $seccomp in
io_uring | epoll | docker) ;;
*) die 2 "--seccomp $seccomp: use io_uring, epoll or docker" ;;
esac

[ -e "$jobs" ] || die 2 "--jobs $jobs: there is no such file"
[ -f "$jobs" ] || die 2 "--jobs $jobs: it is not a file"
[ -r "$jobs" ] || die 2 "--jobs $jobs: it cannot be read; see its permissions"
bytes=$(stat -Lc %s "$jobs")
[ "$bytes" -gt 0 ] || die 2 "--jobs $jobs: it is empty; docker/jobs has examples"
[ "$bytes" -le $MOST_JOB_BYTES ] || die 2 "--jobs $jobs: $bytes bytes are no job file; at most $MOST_JOB_BYTES"

command -v docker >/dev/null || absent "docker is not there: install an engine (Debian: apt-get install docker.io docker-compose)"
reason=$(timeout 20 docker version --format '{{.Server.Version}}' 2>&1) ||
    absent "no Docker engine answers (${reason##*$'\n'}): start one, or set DOCKER_HOST"
if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
elif command -v docker-compose >/dev/null; then
    compose=(docker-compose)
else
    absent "there is neither 'docker compose' nor docker-compose (Debian: apt-get install docker-compose)"
fi

mkdir -p "$out" 2>/dev/null || die 2 "--out $out: it cannot be made"
[ -w "$out" ] || die 2 "--out $out: nothing can be written there"
out=$(cd "$out" && pwd)
rm -f "$out"/{run.json,report.html,load.log,device.log}
jobs=$(realpath "$jobs")
# Where compose looks for profiles.
cd "$here"

project=vfio-ccw-$$
load=$project-load
export TAG="${TAG:-local}" PROMETHEUS_PORT="${PROMETHEUS_PORT:-0}" GRAFANA_PORT="${GRAFANA_PORT:-0}"
files=(-f compose.yaml)
[ "$seccomp" = docker ] || files+=(-f "compose.$seccomp.yaml")
compose+=(-p "$project" "${files[@]}")
[ "$grafana" = no ] || compose+=(--profile grafana)

started=no vendored=no
finish() {
    local status=$?
    trap - EXIT
    # A second Ctrl-C must not leave half of it.
    trap '' INT TERM
    [ "$vendored" = no ] || rm -rf crates/sources crates/config.{new,toml}
    if [ "$started" = yes ]; then
        docker rm --force "$load" >/dev/null 2>&1 || true
        "${compose[@]}" logs --no-color device >"$out/device.log" 2>&1 || true
        if [ "$keep" = yes ] && [ "$status" -le 1 ]; then
            kept
        else
            "${compose[@]}" down --volumes --timeout 15 >"$out/down.log" 2>&1 && rm "$out/down.log" ||
                printf 'run.sh: not all of project %s was taken down, see %s\n' "$project" "$out/down.log" >&2
        fi
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

kept() {
    say "prometheus: http://$("${compose[@]}" port prometheus 9090)/consoles/overview.html"
    [ "$grafana" = no ] || say "grafana: http://$("${compose[@]}" port grafana 3000)/"
    say "to end it: (cd $here && ${compose[*]} down --volumes)"
}

# image NAME DOCKERFILE CONTEXT [TARGET]: builds one. What it said is in build-NAME.log.
image() {
    local name=$1 file=$2 context=$3 target=${4:-} log=$out/build-$1.log arguments=() variable
    for variable in CARGO_PROFILE_RELEASE_{LTO,CODEGEN_UNITS,OPT_LEVEL} {http,https,no}_proxy {HTTP,HTTPS,NO}_PROXY; do
        [ -z "${!variable:-}" ] || [[ $variable == CARGO_* && -z $target ]] || arguments+=(--build-arg "$variable")
    done
    [ -z "$target" ] || arguments+=(--target "$target")
    docker build "${arguments[@]}" --file "$file" --tag "$name:$TAG" "$context" >"$log" 2>&1 && return
    tail -n 30 "$log" >&2
    die 2 "image $name could not be built, see above and $log"
}

# The crates, so that the build downloads nothing: cargo outside knows its way to a registry, the one inside may not.
crates() {
    rm -rf crates/sources crates/config.toml
    command -v cargo >/dev/null || return 0
    if cargo vendor --locked --versioned-dirs --manifest-path ../Cargo.toml crates/sources \
        >crates/config.new 2>"$out/build-crates.log"; then
        sed 's|^directory = .*|directory = "/src/docker/crates/sources"|' crates/config.new >crates/config.toml
    else
        rm -rf crates/sources
        say "cargo vendor failed, see $out/build-crates.log: the build downloads crates itself"
    fi
    rm -f crates/config.new
}

build() {
    local begin=$SECONDS other
    ./base-images.sh || exit
    # Without the plugin there is the old builder only, which will do.
    docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0
    say "building images"
    # Mostly downloads, while the others need the processors. From a context of its own, as the folder changes meanwhile.
    tar -C .. -c metrics/dashboards docker/prometheus | image vfio-ccw-prometheus docker/prometheus/Dockerfile - &
    other=$!
    # Another run of this may be at it: they share the crates' folder.
    exec 9>crates/.lock
    flock 9
    vendored=yes
    crates
    image vfio-ccw-load "$here/Dockerfile" .. load
    image vfio-ccw "$here/Dockerfile" .. command
    rm -rf crates/sources crates/config.toml
    vendored=no
    exec 9>&-
    wait "$other" || exit 2
    say "images are there after $((SECONDS - begin)) s"
}

# healthy SERVICE: waits until it is.
healthy() {
    local id state='not there' end=$((SECONDS + HEALTH_SECONDS))
    while [ $SECONDS -lt $end ]; do
        id=$("${compose[@]}" ps -q "$1" 2>/dev/null) || id=
        state=$([ -z "$id" ] || docker inspect --format '{{.State.Status}} {{.State.Health.Status}}' "$id" 2>/dev/null) || true
        case $state in
        'running healthy') return ;;
        exited* | dead*) break ;;
        esac
        sleep 0.5
    done
    "${compose[@]}" logs --no-color --tail=40 "$1" >&2 || true
    die 2 "$1 is not healthy after $HEALTH_SECONDS s at most (${state:-not there}): its log is above"
}

# sampled JOB: how often Prometheus has scraped it with success.
sampled() {
    docker exec "$("${compose[@]}" ps -q prometheus)" promtool query instant http://127.0.0.1:9090 \
        "sum(sum_over_time(up{job=\"$1\"}[1h])) or vector(0)" 2>/dev/null | sed -n 's/.*=> \([0-9]*\).*/\1/p'
}

# What a container said, without what compose says of it: what it does, and the exit status on a line of its own.
without_compose() { sed -u -E '/^(Creating|Starting) .* \.\.\./d; /^ (Container|Network|Volume) /d; /^[0-9]{1,3}$/d'; }

[ "$build" = no ] || build
for name in vfio-ccw vfio-ccw-load vfio-ccw-prometheus; do
    docker image inspect "$name:$TAG" >/dev/null 2>&1 || die 2 "image $name:$TAG is not there: leave --no-build away"
done

say "device and Prometheus, seccomp profile: $seccomp"
services=(device prometheus)
[ "$grafana" = no ] || services+=(grafana)
started=yes
"${compose[@]}" up -d --no-build "${services[@]}" >"$out/up.log" 2>&1 || {
    cat "$out/up.log" >&2
    die 2 "containers could not be started, see above"
}
rm "$out/up.log"
healthy device
healthy prometheus

say "load: $jobs"
status=0
# Behind, so that a signal is acted on at once and not when the load is through.
"${compose[@]}" run -T --no-deps --use-aliases --name "$load" load \
    load - --json /out/run.json --metrics 0.0.0.0:9464 <"$jobs" 2>&1 | without_compose | tee "$out/load.log" &
wait $! || status=$?
docker cp "$load:/out/run.json" "$out/run.json" >/dev/null 2>&1 || true
docker rm "$load" >/dev/null 2>&1 || true

if [ -s "$out/run.json" ]; then
    # Also of a load that failed.
    if "${compose[@]}" run -T --no-deps --name "$load" load report /out/run.json --output /out/report.html \
        >"$out/report.log" 2>&1 </dev/null && docker cp "$load:/out/report.html" "$out/report.html" >/dev/null 2>&1; then
        rm "$out/report.log"
    else
        say "no HTML was made: $(without_compose <"$out/report.log" | head -n 1)"
    fi
    docker rm "$load" >/dev/null 2>&1 || true
fi

end=$((SECONDS + SCRAPE_SECONDS))
until [ "$(sampled vfio-ccw-server || echo 0)" != 0 ] || [ $SECONDS -ge $end ]; do sleep 1; done
server=$("${compose[@]}" logs --no-color device 2>/dev/null | sed -n 's/.*file I\/O runs on \([a-z_]*\).*/\1/p' | sort -u | paste -sd ' ') || true
client=$(sed -n 's/.*"driver": "\([a-z_]*\)".*/\1/p' "$out/run.json" 2>/dev/null | sort -u | paste -sd ' ') || true
say "I/O driver: device ${server:-unknown}, load ${client:-unknown}"
scrapes=$(sampled vfio-ccw-server) || true
say "Prometheus: ${scrapes:-0} scrapes of the device, $(sampled vfio-ccw || true) of the load"
say "results: $out"

device=$(docker inspect --format '{{.State.Status}}, status {{.State.ExitCode}}' "$("${compose[@]}" ps -q device)" 2>/dev/null) || true
case $device in
running,*) ;;
*)
    "${compose[@]}" logs --no-color --tail=10 device >&2 || true
    die 1 "the device server ended while the load ran (${device:-it is gone}): its log is above"
    ;;
esac
case $status in
0) ;;
1) die 1 "wrong data, or a request failed, was lost or came back twice: see $out/load.log and $out/device.log" ;;
*) die 2 "the load could not be done as asked (status $status), see above" ;;
esac
if [ "$seccomp" = epoll ] && [[ $server$client == *io_uring* ]]; then
    die 2 "seccomp-epoll.json refuses io_uring, and yet it was used: the profile was not in force"
fi
[ -s "$out/run.json" ] || die 2 "the load left no results"
[ -s "$out/report.html" ] || die 2 "the report could not be made: see $out/report.log"
[ "${scrapes:-0}" != 0 ] || die 2 "Prometheus has not scraped the device in $SCRAPE_SECONDS s"
say "every request came back once, and every read that was compared was right"
