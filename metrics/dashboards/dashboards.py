#!/usr/bin/env python3
"""Writes the four Grafana dashboards beside this file, or checks that they are what it would write.

    ./dashboards.py            write them
    ./dashboards.py --check    exit with status 1 if one differs

Grafana's JSON says little in many lines: here a panel is its title, what to do when it looks bad, and
its queries. Change this file and run it; whoever only uses dashboards needs the JSON alone.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent

# Grafana 10. Later versions migrate on import.
SCHEMA = 38
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

# Panels stand in three columns of a grid that is 24 wide.
WIDTH, HEIGHT, COLUMNS = 8, 8, 3


def query(expr, legend="__auto", instant=False):
    """One query of a panel. Legends in braces name labels."""
    return {"expr": expr, "legendFormat": legend, "instant": instant}


def graph(title, description, unit, *queries, stacked=False, most=None):
    """Lines over time; areas on top of each other where they add up to something."""
    custom = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 8, "showPoints": "never"}
    if stacked:
        custom |= {"fillOpacity": 60, "lineWidth": 0, "stacking": {"mode": "normal", "group": "A"}}
    defaults = {"unit": unit, "min": 0, "custom": custom}
    if most is not None:
        defaults["max"] = most
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel("timeseries", title, description, defaults, options, queries)


def bars(title, description, unit, *queries, most=None):
    """One bar for each series, as it is now."""
    defaults = {"unit": unit, "min": 0, "color": {"mode": "continuous-BlPu"}}
    if most is not None:
        defaults["max"] = most
    options = {
        "orientation": "horizontal",
        "displayMode": "basic",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return panel("bargauge", title, description, defaults, options, queries)


def table(title, description, unit, by, columns):
    """One row for each combination of the labels `by`, one column for each of `columns`: name and query."""
    queries = [query(expr, name, instant=True) | {"format": "table"} for name, expr in columns]
    # Of a table query Grafana calls the value Value, or Value #A, Value #B where there are several.
    value = [f"Value #{letter(n)}" if len(columns) > 1 else "Value" for n in range(len(columns))]
    made = panel("table", title, description, {"unit": unit}, {"cellHeight": "sm"}, queries)
    made["transformations"] = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True},
                "indexByName": {name: n for n, name in enumerate([*by, *value])},
                "renameByName": dict(zip(value, (name for name, _ in columns))),
            },
        },
    ]
    return made


def panel(kind, title, description, defaults, options, queries):
    targets = [
        {"refId": letter(n), "datasource": DATASOURCE, "editorMode": "code", "range": not q["instant"]} | q
        for n, q in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": targets,
    }


def letter(n):
    return chr(ord("A") + n)


def choice(name, label, definition, many=True):
    """A variable whose values are those of a label."""
    variable = {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "definition": definition,
        "query": {"query": definition, "refId": "StandardVariableQuery"},
        # As the time range changes: services and subchannels come and go.
        "refresh": 2,
        "sort": 1,
        "multi": many,
        "includeAll": many,
    }
    if many:
        variable["current"] = {"selected": True, "text": ["All"], "value": ["$__all"]}
    return variable


def dashboard(uid, title, description, variables, panels):
    placed = []
    for n, one in enumerate(panels):
        place = {
            "x": n % COLUMNS * WIDTH,
            "y": n // COLUMNS * HEIGHT,
            "w": WIDTH,
            "h": HEIGHT,
        }
        placed.append({"id": n + 1, "gridPos": place} | one)
    source = {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
    }
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["vfio-ccw"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "type": "dashboards",
                "title": "vfio-ccw",
                "tags": ["vfio-ccw"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": [source, *variables]},
        "annotations": {"list": []},
        "panels": placed,
    }


# Services have a pin budget and device servers have clients: that tells their instances apart.
SERVICES = choice("instance", "Instance", "label_values(vfio_ccw_pin_budget_bytes, instance)")
SERVERS = choice("instance", "Instance", "label_values(vfio_ccw_server_clients, instance)")
CLASSES = choice(
    "class",
    "Class",
    'label_values(vfio_ccw_stage_duration_seconds_count{instance=~"$instance"}, class)',
)
OPERATIONS = choice(
    "operation",
    "Operation",
    'label_values(vfio_ccw_stage_duration_seconds_count{instance=~"$instance"}, operation)',
)
SUBCHANNEL = choice(
    "subchannel",
    "Subchannel",
    'label_values(vfio_ccw_subchannel_requests_total{instance=~"$instance"}, subchannel)',
    many=False,
)

QUANTILES = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)]


def rate(metric, more=""):
    """The rate of a counter of the instances chosen."""
    return f'rate({metric}{{instance=~"$instance"{more}}}[$__rate_interval])'


def summed(metric, by="", more=""):
    return f"sum{f' by ({by})' if by else ''} ({rate(metric, more)})"


def gauge(metric, more=""):
    return f'{metric}{{instance=~"$instance"{more}}}'


CHOSEN = ', class=~"$class", operation=~"$operation"'


def stage_quantile(quantile, by="", more=CHOSEN):
    """A quantile of the time in stages, by further labels."""
    by = f"le, {by}" if by else "le"
    return f"histogram_quantile({quantile}, {summed('vfio_ccw_stage_duration_seconds_bucket', by, more)})"


def stage_mean(by="", more=CHOSEN):
    total = summed("vfio_ccw_stage_duration_seconds_sum", by, more)
    count = summed("vfio_ccw_stage_duration_seconds_count", by, more)
    return f"{total} / {count}"


def quantiles_of(stage, more=CHOSEN):
    """The usual quantiles of one stage, as queries of a graph."""
    chosen = f'{more}, stage="{stage}"'
    return [query(stage_quantile(q, more=chosen), name) for name, q in QUANTILES]


OVERVIEW = dashboard(
    "vfio-ccw-overview",
    "vfio-ccw / overview",
    "Do guests get their I/O, how fast, and where does the time go?",
    [SERVICES, CLASSES, OPERATIONS],
    [
        graph(
            "Requests",
            "Requests that ended, each second. Zero while 'in flight' is not: nothing ends; look at 'oldest "
            "request' and the alerts.",
            "ops",
            query(summed("vfio_ccw_completions_total", "instance"), "{{instance}}"),
        ),
        graph(
            "Time of a request",
            "From a vCPU's submission to its completion. When it rises, 'where the time goes' says which stage.",
            "s",
            *quantiles_of("total"),
        ),
        graph(
            "Where the time goes",
            "Mean time in each stage, stacked. queue grows: too few shards, or one device keeps its shard busy. "
            "pin grows: see dashboard 'pinning'. device grows: storage, or the device server.",
            "s",
            query(stage_mean("stage", CHOSEN + ', stage!="total"'), "{{stage}}"),
            stacked=True,
        ),
        table(
            "Stages",
            "Quantiles of each stage, now. A stage whose p99.9 is far from its p99 stalls now and then: compare with "
            "the graph of p99 and with what else runs on the machine.",
            "s",
            ["stage"],
            [(name, stage_quantile(q, "stage")) for name, q in QUANTILES],
        ),
        graph(
            "p99 by stage",
            "When one line leaves the others, that stage is the cause; when all rise together, the shard's thread does "
            "not get its processor.",
            "s",
            query(stage_quantile(0.99, "stage"), "{{stage}}"),
        ),
        graph(
            "Waiting and under way",
            "Queued requests wait for a shard, those in flight for their device. Queued grows without end: shards are "
            "saturated, add some. In flight is at the number of subchannels: devices are the limit.",
            "short",
            query(f"sum ({gauge('vfio_ccw_requests_queued')})", "queued"),
            query(f"sum ({gauge('vfio_ccw_requests_in_flight')})", "in flight"),
            query(f"sum ({gauge('vfio_ccw_subchannels')})", "subchannels"),
        ),
        graph(
            "Outcomes other than ok",
            "Any line here is something that a guest saw. program_check, protection_check: the guest's program. "
            "unit_check: the device, see beside. refused_policy, refused_budget: your own rules.",
            "ops",
            query(summed("vfio_ccw_completions_total", "outcome", ', outcome!="ok"'), "{{outcome}}"),
        ),
        graph(
            "Unit checks and slow requests",
            "Unit checks by sense. equipment_check and data_check: look at the storage. command_reject: a driver that "
            "wants another device, or a policy. Slow: slower than the flight recorder's threshold, which has kept them.",
            "ops",
            query(summed("vfio_ccw_unit_checks_total", "sense"), "{{sense}}"),
            query(summed("vfio_ccw_slow_requests_total"), "slow"),
        ),
        graph(
            "Oldest request",
            "Age of the oldest request that is not over. A line that climbs at one second a second is a request that "
            "is stuck: dashboard 'one subchannel' finds whose.",
            "s",
            query(f"max by (instance) ({gauge('vfio_ccw_oldest_request_seconds')})", "{{instance}}"),
        ),
        graph(
            "Throughput",
            "Bytes that devices moved. Falls while requests do not: transfers got smaller, which is the guest's doing.",
            "Bps",
            query(summed("vfio_ccw_read_bytes_total"), "read"),
            query(summed("vfio_ccw_written_bytes_total"), "written"),
        ),
        graph(
            "How shards wait",
            "Share of time that shards spent without work. Near 0 in sum: saturated, add shards. Much 'in_vain': "
            "they look for work that does not come, choose another --wait.",
            "percentunit",
            query(summed("vfio_ccw_wait_seconds_total", "how"), "{{how}}"),
            stacked=True,
        ),
        table(
            "Alerts that fire",
            "'none' is good. Each alert's annotation 'remedy' says what to do; so does README.md beside these "
            "dashboards.",
            "short",
            ["severity", "alertname", "instance"],
            [
                (
                    "firing",
                    'count by (severity, alertname, instance) (ALERTS{alertname=~"VfioCcw.*", alertstate="firing"}) '
                    'or label_replace(vector(0), "alertname", "none", "", "")',
                )
            ],
        ),
    ],
)

PINNING = dashboard(
    "vfio-ccw-pinning",
    "vfio-ccw / pinning",
    "Is the pin budget right, and what does it cost when it is not?",
    [SERVICES],
    [
        graph(
            "Pinned and budget",
            "Guest memory that is pinned, against what may be. At the budget is normal for a cache; only waits or "
            "evictions on top of it call for a larger one.",
            "bytes",
            query(f"sum ({gauge('vfio_ccw_pinned_bytes')})", "pinned"),
            query(f"sum ({gauge('vfio_ccw_pinned_peak_bytes')})", "peak"),
            query(f"sum ({gauge('vfio_ccw_pin_budget_bytes')})", "budget"),
        ),
        graph(
            "Hit rate",
            "Pages found pinned. A fall with evictions: the working set outgrew the budget. With invalidations: memory "
            "is taken away from the guest. With neither: the guest has just started something.",
            "percentunit",
            query(
                f"{summed('vfio_ccw_pin_hits_total', 'instance')} / {summed('vfio_ccw_pin_gets_total', 'instance')}",
                "{{instance}}",
            ),
            most=1,
        ),
        bars(
            "Hit rate at other budgets",
            "Estimate of the hit rate with a budget so many times as large. Choose the smallest after which the bars "
            "grow no more; if the first is as long as the last, give memory back.",
            "percentunit",
            query(
                f"avg by (of_budget) ({gauge('vfio_ccw_pin_estimated_hit_ratio')})",
                "{{of_budget}} x budget",
                instant=True,
            ),
            most=1,
        ),
        graph(
            "Misses, evictions, invalidations",
            "Pages each second. Misses equal to evictions over long: the budget is too small. Invalidations come from a "
            "balloon, virtio-mem or hot-unplug: make those bigger and rarer.",
            "ops",
            query(summed("vfio_ccw_pin_misses_total"), "misses"),
            query(summed("vfio_ccw_pin_evictions_total"), "evictions"),
            query(summed("vfio_ccw_pin_invalidations_total"), "invalidations"),
        ),
        graph(
            "Requests that waited for room",
            "Requests each second that found the budget full of pages in use. More than a few: raise the budget or let "
            "fewer be under way.",
            "ops",
            query(summed("vfio_ccw_pin_waits_total", "instance"), "{{instance}}"),
        ),
        graph(
            "Programs waiting now",
            "Length of the line for the budget. If it never gets back to 0, programs hold pages for too long: look for a "
            "slow device on dashboard 'overview'.",
            "short",
            query(f"sum by (instance) ({gauge('vfio_ccw_pin_waiting_programs')})", "{{instance}}"),
        ),
        graph(
            "Time in stage pin",
            "A hit takes nanoseconds, a miss a system call or more. p50 rises: most requests miss, raise the budget. Only "
            "p99.9: misses are rare and dear, try larger frames (--granule) or the pinner registered.",
            "s",
            *quantiles_of("pin", more=""),
        ),
        graph(
            "Share of request time in stage pin",
            "What the cache costs guests. Below a percent or so, pinning is not your problem.",
            "percentunit",
            query(
                summed("vfio_ccw_stage_duration_seconds_sum", "instance", ', stage="pin"')
                + " / "
                + summed("vfio_ccw_stage_duration_seconds_sum", "instance", ', stage="total"'),
                "{{instance}}",
            ),
        ),
        graph(
            "Pages pinned in one call",
            "Missing pages that lie side by side are pinned together. Near 1 with many misses: the guest's buffers are "
            "scattered; huge pages or larger frames help. No line: nothing was pinned.",
            "short",
            query(
                f"{summed('vfio_ccw_pin_misses_total', 'instance')} / {summed('vfio_ccw_pin_calls_total', 'instance')}",
                "{{instance}}",
            ),
        ),
        graph(
            "Pages asked for by a request",
            "Rises with the size of transfers and with scattered buffers. Times the requests under way it is what the "
            "budget must hold at the very least.",
            "short",
            query(
                f"{summed('vfio_ccw_pin_gets_total', 'instance')} / {summed('vfio_ccw_starts_total', 'instance')}",
                "{{instance}}",
            ),
        ),
        graph(
            "Pages that ran unpinned",
            "Pages each second of programs that want more than may ever be pinned, or that the system refused to pin. "
            "Not 0: raise RLIMIT_MEMLOCK or the budget; the service's log names which.",
            "ops",
            query(summed("vfio_ccw_pin_unpinned_total", "instance"), "{{instance}}"),
        ),
        graph(
            "Windows",
            "Pieces of guest memory that devices see. Each is a mapping that the kernel or the server keeps: many "
            "thousands call for larger frames (--granule).",
            "short",
            query(f"sum by (instance) ({gauge('vfio_ccw_windows')})", "{{instance}}"),
        ),
    ],
)

ONE = ', subchannel="$subchannel"'

ONE_SUBCHANNEL = dashboard(
    "vfio-ccw-subchannel",
    "vfio-ccw / one subchannel",
    "Is it this device? Only some subchannels are measured one by one: those that are busiest, or were chosen.",
    [SERVICES, SUBCHANNEL],
    [
        graph(
            "Requests",
            "Requests of this subchannel that ended, each second. 0 while the guest wants something: see 'oldest request'.",
            "ops",
            query(summed("vfio_ccw_subchannel_requests_total", "class", ONE), "{{class}}"),
        ),
        graph(
            "Busy",
            "Share of time in which a request was under way. Near 100 %: this device is the limit. It runs one program "
            "at a time, so spread the load over more devices or make transfers larger.",
            "percentunit",
            query(summed("vfio_ccw_subchannel_busy_seconds_total", more=ONE), "busy"),
        ),
        graph(
            "Oldest request",
            "Age of its oldest request. A line that climbs steadily is a request that is stuck: look at the storage or "
            "the device server behind it, then CLEAR SUBCHANNEL from the guest or detach the device.",
            "s",
            query(f"max ({gauge('vfio_ccw_subchannel_oldest_request_seconds', ONE)})", "oldest"),
        ),
        graph(
            "Errors",
            "Requests each second that ended with anything but ok. Dashboard 'overview' has the outcomes of all devices "
            "and the sense of unit checks.",
            "ops",
            query(summed("vfio_ccw_subchannel_errors_total", more=ONE), "errors"),
        ),
        graph(
            "Share of errors",
            "A few at boot are a guest that probes. A share that stays is a device that does not work: see 'outcomes' on "
            "dashboard 'overview'.",
            "percentunit",
            query(
                f"{summed('vfio_ccw_subchannel_errors_total', more=ONE)} / "
                f"{summed('vfio_ccw_subchannel_requests_total', more=ONE)}",
                "share",
            ),
            most=1,
        ),
        graph(
            "Mean time of a request, and of all others",
            "Busy time for each request of this subchannel, and the mean of all subchannels measured. Apart: it is this "
            "device. Together: it is the machine.",
            "s",
            query(
                f"{summed('vfio_ccw_subchannel_busy_seconds_total', more=ONE)} / "
                f"{summed('vfio_ccw_subchannel_requests_total', more=ONE)}",
                "$subchannel",
            ),
            query(
                f"{summed('vfio_ccw_subchannel_busy_seconds_total')} / {summed('vfio_ccw_subchannel_requests_total')}",
                "all measured",
            ),
        ),
        graph(
            "Share of the service's requests",
            "Near 100 % while others queue: this guest device crowds the others out; give it a shard of its own or a "
            "limit in the guest.",
            "percentunit",
            query(
                f"{summed('vfio_ccw_subchannel_requests_total', more=ONE)} / {summed('vfio_ccw_completions_total')}",
                "$subchannel",
            ),
            most=1,
        ),
        table(
            "Busiest subchannels",
            "Where to look next: choose one above. All near 100 %: the load is spread well, and devices are the limit.",
            "percentunit",
            ["subchannel", "class", "instance"],
            [
                (
                    "busy",
                    f"topk(10, {summed('vfio_ccw_subchannel_busy_seconds_total', 'subchannel, class, instance')})",
                )
            ],
        ),
        table(
            "Longest waiting subchannels",
            "Ages of oldest requests. Seconds for a disk: it is stuck, or its storage is.",
            "s",
            ["subchannel", "class", "instance"],
            [("oldest", f"topk(10, {gauge('vfio_ccw_subchannel_oldest_request_seconds')})")],
        ),
    ],
)
# The table shows what it is asked for, not what else the series is labelled with.
ONE_SUBCHANNEL["panels"][-1]["transformations"][-1]["options"]["excludeByName"] |= {"__name__": True, "job": True}

DEVICE_SERVER = dashboard(
    "vfio-ccw-server",
    "vfio-ccw / device server",
    "vfio-ccw serve: who is connected, what do they want, and how fast are the devices?",
    [SERVERS],
    [
        graph(
            "Clients",
            "Connections that are open: one for each device that a VMM uses. Falls to 0: the VMM went, or cannot reach "
            "the sockets (permissions, folder).",
            "short",
            query(f"sum by (instance) ({gauge('vfio_ccw_server_clients')})", "{{instance}}"),
        ),
        graph(
            "New connections",
            "Each second. Steady while clients stay the same in number: they come and go; look at their log and at "
            "refusals here.",
            "ops",
            query(summed("vfio_ccw_server_connections_total", "instance"), "{{instance}}"),
        ),
        graph(
            "Messages",
            "Set-up, and programs that do not come over a lane, each second. Near the rate of programs: lanes are not "
            "used; start the client without --no-lane, and look for an older client.",
            "ops",
            query(summed("vfio_ccw_server_messages_total", "instance"), "{{instance}}"),
        ),
        graph(
            "Refused messages",
            "Should be 0. Not 0: a client of another version or a hostile one; the log at level debug says what and "
            "why.",
            "ops",
            query(summed("vfio_ccw_server_refusals_total", "instance"), "{{instance}}"),
        ),
        graph(
            "Lanes",
            "Shared memory that programs come over. 0 with clients connected: every program costs system calls; the "
            "client is too old or was told --no-lane.",
            "short",
            query(f"sum by (instance) ({gauge('vfio_ccw_server_lanes')})", "{{instance}}"),
        ),
        graph(
            "Windows",
            "Pieces of clients' memory that are mapped here. Grows while clients do not: a client adds memory and never "
            "takes it back.",
            "short",
            query(f"sum by (instance) ({gauge('vfio_ccw_server_windows')})", "{{instance}}"),
        ),
        graph(
            "Bytes of clients' memory",
            "What is mapped, counted once for each device: address space, not memory. Near the limit of the address "
            "space: fewer devices in one server.",
            "bytes",
            query(f"sum by (instance) ({gauge('vfio_ccw_server_window_bytes')})", "{{instance}}"),
        ),
        graph(
            "Programs",
            "Programs that ended, each second. 0 with clients: their VMMs are idle, or stuck; compare with dashboard "
            "'overview' of the client.",
            "ops",
            query(summed("vfio_ccw_completions_total", "instance"), "{{instance}}"),
        ),
        graph(
            "Time in the device",
            "From a program's start to its end here. If the client's stage device is much longer, the way between is: "
            "lanes, and processors for both.",
            "s",
            *quantiles_of("device", more=""),
        ),
        graph(
            "Throughput",
            "Bytes that devices moved to and from clients' memory. Flat while programs queue up: the storage is the "
            "limit.",
            "Bps",
            query(summed("vfio_ccw_read_bytes_total"), "read"),
            query(summed("vfio_ccw_written_bytes_total"), "written"),
        ),
        graph(
            "Outcomes other than ok",
            "unit_check: look at the volume and its storage. Others: the client's translated program is wrong, which is "
            "a bug of ours; keep the log.",
            "ops",
            query(summed("vfio_ccw_completions_total", "outcome", ', outcome!="ok"'), "{{outcome}}"),
        ),
        graph(
            "Times asleep",
            "How often the server went to sleep, each second. As often as programs come: each one wakes it, which costs "
            "more than the program; try --wait adaptive with a longer look.",
            "ops",
            query(summed("vfio_ccw_sleeps_total", "instance"), "{{instance}}"),
        ),
    ],
)

DASHBOARDS = {
    "overview.json": OVERVIEW,
    "pinning.json": PINNING,
    "subchannel.json": ONE_SUBCHANNEL,
    "server.json": DEVICE_SERVER,
}


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    differ = []
    for name, made in DASHBOARDS.items():
        path, text = HERE / name, json.dumps(made, indent=2) + "\n"
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            differ.append(name)
    if differ:
        sys.exit(f"{', '.join(differ)}: not what dashboards.py writes; run it, or undo the change by hand")


if __name__ == "__main__":
    main()
