"""A wrong configuration, a reload, a crash loop, a restart, a clock that is not set: the session goes on, or comes at once."""

import datetime
import json
import signal
import subprocess
import time

from . import plan
from .daemon import SERVICE, config
from .namespaces import wait_for

GOOD = config(hold_down="3s")
TYPO = GOOD.replace("hold_down", "hold_dwn")
# What `systemctl restart` may cost, and the longest time between two of the load's messages.
RESTART_MAX, STEP = 1.0, 0.05


def hang_up(lab):
    lab.send_signal(SERVICE, signal.SIGHUP)


def says(status):
    return status["configuration"]["says"] or ""


def supervised(lab, **environment):
    """As the service manager starts it; without one, nothing is a crash loop."""
    lab.start(SERVICE, plan.GATEWAY, lab.daemon_command(), {"NOTIFY_SOCKET": "/nonexistent", **environment})


def test_a_typo_at_a_reload_leaves_the_session_alone_and_a_good_one_takes_effect(online, load):
    load.start().wait_flow(time.time())
    session = online.status()["session"]["id"]
    online.configure(TYPO)
    hang_up(online)
    status = online.wait_status(says, 5, "the typo to be told")
    assert "did you mean" in says(status) and status["session"]["id"] == session and status["state"] == "online"
    online.configure(config(failover='order = ["wifi", "ethernet"]', hold_down="3s"))
    reloaded = time.time()
    hang_up(online)
    online.wait_online("wifi", within=5)
    load.wait_flow(time.time())
    pause = load.pause(reloaded)
    count = load.stop()
    assert count.lost == 0 and count.refused == 0, count
    assert pause < RESTART_MAX + STEP, pause
    assert online.status()["start_reason"] == "config"


def test_a_restart_is_over_within_a_second(online, load):
    load.start().wait_flow(time.time())
    pauses = []
    for _ in range(3):
        began = time.time()
        online.daemon_stop()
        online.daemon_start()
        online.wait_online("eth", within=5)
        load.wait_flow(time.time())
        pauses.append(round(load.pause(began), 3))
    count = load.stop()
    print("pauses", pauses)
    assert count.lost == 0, count
    assert max(pauses) < RESTART_MAX + STEP, pauses


def test_a_typo_at_the_start_connects_as_before(online):
    wait_for(online.path(f"{online.state_dir}/last-good.toml").exists, 5, "the configuration to be kept")
    online.daemon_stop()
    online.daemon_start(TYPO)
    status = online.wait_online("eth", within=15)
    assert status["state"] == "safe-mode" and status["configuration"]["running"] == "last-good"
    assert "did you mean" in says(status)
    found = json.loads(online.switchback("doctor", "--json", check=False).stdout)["findings"]
    assert any(one["what"] == "daemon" and "safe mode" in one["seen"] for one in found)
    online.configure(GOOD)
    hang_up(online)
    online.wait_status(lambda now: now["state"] == "online" and not says(now), 10, "the daemon to run as written")


def test_a_crash_loop_keeps_the_connection_and_the_messages(online):
    online.broker_kill()
    for number in range(3):
        online.switchback("publish", "kept", str(number))
    for _ in range(4):
        online.daemon_kill()
        supervised(online)
        online.wait_status(bool, 5, "the daemon to serve")
    online.broker_start()
    # The first one of the five had no service manager.
    online.daemon_kill()
    supervised(online)
    status = online.wait_online("eth", within=15)
    assert status["state"] == "safe-mode" and status["configuration"]["safe_mode"] == "crash-loop"
    online.daemon_stop()
    supervised(online)
    online.wait_status(lambda now: now["state"] == "online" and now["outbox"]["messages"] == 0, 15, "all to be sent")
    kept = [one["payload"] for one in map(json.loads, online.path(online.recording_file).read_text().splitlines())
            if one.get("topic") == "kept"]
    assert sorted(set(kept)) == ["0", "1", "2"]


def test_a_clock_in_the_past_is_told_and_times_are_right_once_it_is_set(lab):
    shim, offset = lab.path("/run/lab/clock.so"), lab.path("/run/lab/clock-offset")
    source = lab.path("/run/lab/clock.c")
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", str(source), "-o", str(shim)], check=True)
    offset.write_text(str(-40 * 365 * 86400))
    lab.configure(config(hold_down="3s"))
    lab.run(plan.GATEWAY, f"rm -rf {lab.state_dir} {plan.RUNTIME_DIR}/*; mkdir -p {lab.state_dir}")
    supervised(lab, LD_PRELOAD="/run/lab/clock.so")
    lab.wait_status(lambda now: now["state"] == "clock-wrong", 10, "the clock to be blamed")
    listener = subprocess.Popen(
        lab.enter(plan.CLOUD) + ["mosquitto_sub", "-V", "mqttv5", "-h", "127.0.0.1", "-p", str(plan.PLAIN),
                                 "-t", "early", "-C", "1", "-W", "40", "-F", "%P"],
        stdout=subprocess.PIPE, text=True)
    offered = time.time()
    lab.switchback("publish", "early", "x")
    assert lab.status()["outbox"]["oldest_s"] < 60
    time.sleep(2)
    offset.write_text("0")
    lab.wait_online("eth", within=15)
    properties = listener.communicate(timeout=45)[0]
    told = properties.split("sb-time:")[1].split()[0]
    told = datetime.datetime.fromisoformat(told.replace("Z", "+00:00")).timestamp()
    assert abs(told - offered) < 1, properties
    lab.daemon_stop()
    assert lab.path(f"{lab.state_dir}/clock").read_text().startswith("switchback clock 1\n")


CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME) {
        long offset = 0;
        FILE *file = fopen("/run/lab/clock-offset", "re");
        if (file) {
            if (fscanf(file, "%ld", &offset) != 1)
                offset = 0;
            fclose(file);
        }
        now->tv_sec += offset;
    }
    return result;
}
"""
