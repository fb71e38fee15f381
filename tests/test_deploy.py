"""The Dockerfile and the manifest of deploy/kubernetes: what they promise, and their commands tried on real servers."""

import argparse
import configparser
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from lhydra import config
from lhydra.bundle.manifest import current_bundle_id
from lhydra.commands import retrain
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import Play, UserState
from lhydra.retraining.settings import RetrainSettings
from lhydra.users.connections import Address
from lhydra.users.lmdb_store import LmdbUsers
from lhydra.users.redis_store import RedisUsers
from lhydra_index_builder.config import RebuildSettings
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub
from lhydra_server import command
from lhydra_server.config import ServeSettings, longest_stop_s
from tests import redis_server
from tests.fake_serve import write_bundle
from tests.harness import until
from tests.test_supervisor import B1, ROOT, fake, open_stub, publish, running

DOCKERFILE = (ROOT / "Dockerfile").read_text()
MANIFESTS = {one["kind"]: one for one in yaml.safe_load_all((ROOT / "deploy/kubernetes/lhydra.yaml").read_text())}
POD: dict[str, Any] = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
CONTAINERS: list[dict[str, Any]] = POD["containers"]


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments, continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def settings() -> ServeSettings:
    """What the arguments of the manifest mean to `lhydra serve`."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    command.configure(parser)
    return config.resolve("serve", ServeSettings, parser.parse_args(["/store", *CONTAINERS[0]["args"]]))


# -- the image --------------------------------------------------------------------------------------------


def test_the_image_is_not_root_and_installs_nothing_without_a_hash() -> None:
    found = instructions()
    last = [name for name, _ in found].index("FROM", 1)
    assert ("USER", f"{POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}") in found[last:]
    assert "RUN" not in [name for name, _ in found[last:]]  # nothing is installed into what is shipped
    installs = [part for name, rest in found if name == "RUN" for part in rest.split("&&") if " install " in part]
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install or "--no-deps /wheel/" in install
    locks = set(re.findall(r"/locks/(\w+)\.txt", DOCKERFILE))
    assert locks == {"build", "serve"}


def test_what_goes_into_the_image_is_named_and_there() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    wheel = re.findall(
        r'"([\w/]+)"', (ROOT / "pyproject.toml").read_text().split("build.targets.wheel]")[1].split("]")[0]
    )
    assert wheel
    assert {name.split("/")[0] for name in wheel} <= kept


def health(port: str) -> int:
    """The exit code of HEALTHCHECK, asked of another port."""
    (check,) = [rest for name, rest in instructions() if name == "HEALTHCHECK"]
    argv = json.loads(check.partition("CMD ")[2].replace("127.0.0.1:50051", f"127.0.0.1:{port}"))
    assert argv.pop(0) == "python"
    return subprocess.run([sys.executable, *argv], capture_output=True, timeout=60, check=False).returncode


def test_the_health_check_of_the_image_tells_a_server_that_serves(tmp_path: Path) -> None:
    write_bundle(tmp_path / "store", B1, n=50)
    publish(tmp_path / "store", B1)
    with running(fake(tmp_path / "store"), tmp_path / "log") as server:
        port = server.address.rpartition(":")[2]
        assert health(port) == 0
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == 0
    assert health(port) != 0


# -- the manifest -----------------------------------------------------------------------------------------


def test_no_container_has_rights_it_does_not_need() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] >= 10_000
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(POD)
    for container in (*CONTAINERS, *POD.get("initContainers", ())):
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["runAsNonRoot"] is True
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert ":" in container["image"]
        assert not container["image"].endswith(":latest")
        assert all(mount.get("readOnly") or mount["mountPath"] == "/tmp" for mount in container["volumeMounts"])
    assert not [volume for volume in POD["volumes"] if "hostPath" in volume]


def test_probes_and_ports_are_those_of_the_server() -> None:
    (container,) = CONTAINERS
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": ServeSettings().port, "metrics": settings().metrics_port}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": ports["grpc"]}
        assert container[probe]["timeoutSeconds"] <= container[probe]["periodSeconds"]
    start = container["startupProbe"]
    assert start["failureThreshold"] * start["periodSeconds"] >= 900  # as long as the server gives a bundle
    live = container["livenessProbe"]
    assert live["failureThreshold"] * live["periodSeconds"] > 20  # the supervisor comes first
    assert f"EXPOSE {ports['grpc']}" in DOCKERFILE
    service = {port["name"]: port["port"] for port in MANIFESTS["Service"]["spec"]["ports"]}
    assert service == ports
    allowed = [rule["ports"][0]["port"] for rule in MANIFESTS["NetworkPolicy"]["spec"]["ingress"]]
    assert allowed == [*ports.values()]


def test_the_server_takes_the_arguments_and_has_time_to_leave() -> None:
    (container,) = CONTAINERS
    found = settings()
    assert found.insecure  # the gRPC probe of Kubernetes speaks no TLS
    assert not found.tls_cert
    assert not found.pin
    assert str(found.workers) == container["resources"]["requests"]["cpu"]
    (users,) = container["env"]
    assert users["name"] == "LHYDRA_SERVE_USERS"
    assert "secretKeyRef" in users["valueFrom"]
    name, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert name == "sleep"
    assert POD["terminationGracePeriodSeconds"] > int(seconds) + longest_stop_s(found.connection_age_s)


def test_one_pod_may_leave_and_nobody_notices() -> None:
    deployment = MANIFESTS["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert deployment["replicas"] > MANIFESTS["PodDisruptionBudget"]["spec"]["minAvailable"] > 0
    scaling = MANIFESTS["HorizontalPodAutoscaler"]["spec"]
    assert scaling["minReplicas"] == deployment["replicas"] < scaling["maxReplicas"]
    assert scaling["scaleTargetRef"]["name"] == MANIFESTS["Deployment"]["metadata"]["name"]
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert MANIFESTS[kind]["spec"]["selector"] == {"matchLabels": labels}
    assert MANIFESTS["NetworkPolicy"]["spec"]["podSelector"] == {"matchLabels": labels}


READ_ONLY = """
set -e
mount --make-rprivate /
mount -t tmpfs none "$TMPDIR"
awk '{print $5}' /proc/self/mountinfo | while read -r place; do
    case "$place" in /proc*|/sys*|/dev*|"$TMPDIR") ;; *) mount -o remount,bind,ro "$place" ;; esac
done
if touch "$1/probe" 2>/dev/null; then echo "it can be written to" >&2; exit 9; fi
shift
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What to put before a command for which every file system but the one for temporary files is read-only."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    tried = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", str(tmp_path)]
    ran = (
        subprocess.run([*tried, "true"], capture_output=True, text=True, check=False)
        if shutil.which("unshare")
        else None
    )
    if ran is None or ran.returncode:
        pytest.skip(f"READ-ONLY MOUNTS ABSENT: {ran.stderr.strip() if ran else 'no unshare'}")
    return tried


def test_a_server_with_its_arguments_needs_no_file_system_that_it_can_write_to(
    tiny_store: Path, read_only: list[str], tmp_path: Path
) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    shutil.rmtree(store / "users.lmdb")
    before = sorted(store.rglob("*"))
    with redis_server.running() as redis:
        serve = [sys.executable, "-m", "lhydra.cli", "serve", store, *CONTAINERS[0]["args"], "--port", "0"]
        argv = [*read_only, *serve, "--metrics-port", "0", "--users", redis.url]
        with running(["-c", "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])", *argv], tmp_path / "log") as server:
            assert server.status().bundle_id == current_bundle_id(store)
            with open_stub(server.address) as stub:
                first = stub.Recommend(pb.RecommendRequest(user_id="ann", k=3), timeout=60).tracks[0].track_id
                play = pb.Play(event_id="e", user_id="ann", track_id=first)
                assert stub.RecordPlays(pb.RecordPlaysRequest(plays=[play]), timeout=60).recorded == 1
            other = next(
                one.parent.name for one in store.glob("*/manifest.json") if one.parent.name != server.status().bundle_id
            )
            publish(store, other)
            until(lambda: server.status().bundle_id == other)
            worse = [line["message"] for line in server.whole_log() if line["level"] in ("error", "warning")]
            assert worse == ["made an empty user store"]
    assert sorted(store.rglob("*")) == before


# -- backup and restore -----------------------------------------------------------------------------------


def served(store: Path) -> list[str | Path]:
    return ["-m", "lhydra.cli", "serve", store, "--port", "0", "--workers", "1", "--no-pin"]


def play(stub: RecommenderStub, user: str, number: int) -> None:
    one = pb.Play(
        event_id=f"{user}-{number}", user_id=user, track_id=f"T{number:07}", timestamp_s=1_700_000_000 + number
    )
    stub.RecordPlays(pb.RecordPlaysRequest(plays=[one]), timeout=60)


def backup(store: Path, target: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    argv = [ROOT / "deploy" / "backup.sh", store, target]
    return subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=120, check=False)


def answers(stub: RecommenderStub, users: list[str]) -> list[list[tuple[str, float]]]:
    """The lists of users, from one clock."""
    asked = (pb.RecommendRequest(user_id=user, k=10, now_s=1_800_000_000) for user in users)
    replies = (stub.Recommend(one, timeout=60) for one in asked)
    return [[(track.track_id, track.score) for track in reply.tracks] for reply in replies]


def test_a_backup_taken_while_plays_come_in_answers_the_same_and_lost_none(
    tiny_store: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    store, target = Path(shutil.copytree(tiny_store, tmp_path / "store")), tmp_path / "backup"
    stop, acknowledged = threading.Event(), [0]
    with running(served(store), tmp_path / "log") as server, open_stub(server.address) as stub:
        users = [user_id for user_id, _ in itertools.islice(user_states(tiny_dataset, "now"), 30)]
        for number in range(20):
            play(stub, "early", number)

        def record() -> None:
            while not stop.is_set():
                play(stub, "meanwhile", acknowledged[0])
                acknowledged[0] += 1

        writer = threading.Thread(target=record)
        writer.start()
        try:
            until(lambda: acknowledged[0])
            before = acknowledged[0]
            ran = backup(store, target)
            until(lambda: acknowledged[0] > before)
        finally:
            stop.set()
            writer.join()
        assert ran.returncode == 0, ran.stderr
        wanted = answers(stub, [*users, "early"])
        assert len(set(map(tuple, wanted))) > 1  # they know their listeners
    opened = LmdbUsers(target / "users.lmdb", create=False)
    early, meanwhile = opened.get("early"), opened.get("meanwhile")
    opened.close()
    assert early is not None
    assert len(early.heard) == 20
    assert meanwhile is not None
    assert before <= len(meanwhile.heard) <= acknowledged[0]
    shutil.rmtree(store)
    with running(served(target), tmp_path / "log2") as server, open_stub(server.address) as stub:
        assert answers(stub, [*users, "early"]) == wanted
        again = pb.Play(event_id="early-3", user_id="early", track_id="T0000003", timestamp_s=1_700_000_003)
        assert stub.RecordPlays(pb.RecordPlaysRequest(plays=[again]), timeout=60).duplicates == 1


def test_a_backup_that_fails_leaves_nothing_and_one_that_is_there_stays(tiny_store: Path, tmp_path: Path) -> None:
    store, target = Path(shutil.copytree(tiny_store, tmp_path / "store")), tmp_path / "backup"
    damaged = store / current_bundle_id(store) / "index.faiss"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert "index.faiss" in backup(store, target).stderr
    assert sorted(one.name for one in tmp_path.iterdir()) == ["store"]
    target.mkdir()
    assert "expected neither" in backup(store, target).stderr
    assert list(target.iterdir()) == []


def kept(state: UserState | None) -> tuple[Any, ...]:
    """What a store knows of a listener, to be compared."""
    assert state is not None
    return state.version, state.history.tolist(), sorted(state.heard)


def test_a_snapshot_of_redis_brings_back_every_listener(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    plays = [Play(f"e{number}", f"u{number % 7}", f"t{number}", number + 1) for number in range(50)]
    with redis_server.budgets():
        with redis_server.running("", "--dir", str(tmp_path / "old")) as redis:
            users = RedisUsers(Address.parse(redis.url))
            users.record(plays)
            wanted = [kept(users.get(f"u{number}")) for number in range(7)]
            users.close()
            with socket.create_connection(("127.0.0.1", redis.port), 30) as connection:
                connection.sendall(b"SAVE\r\n")
                assert connection.recv(64) == b"+OK\r\n"
        shutil.copy(tmp_path / "old" / "dump.rdb", tmp_path / "new")
        with redis_server.running("", "--dir", str(tmp_path / "new")) as redis:
            users = RedisUsers(Address.parse(redis.url))
            assert [kept(users.get(f"u{number}")) for number in range(7)] == wanted
            assert not any(users.record(plays))
            users.close()


# -- the loop ---------------------------------------------------------------------------------------------

LOOP = {one["kind"]: one for one in yaml.safe_load_all((ROOT / "deploy/kubernetes/retrain.yaml").read_text())}
CODES = {"fine": {retrain.NOT_PUBLISHED, retrain.LOCKED}, "for people": {2, retrain.REFUSED}}


def test_a_cron_job_of_the_loop_knows_its_exit_codes(tmp_path: Path) -> None:
    job = LOOP["CronJob"]["spec"]["jobTemplate"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (fails,) = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert (fails["containerName"], set(fails["values"])) == (container["name"], CODES["for people"])
    for code in range(8):  # the command as it is, with a command that ends with each code in the place of ours
        fake = tmp_path / "lhydra"
        fake.write_text(f"#!/bin/sh\nexit {code}\n")
        fake.chmod(0o755)
        environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        ran = subprocess.run([*container["command"], *container["args"]], env=environ, check=False)
        assert ran.returncode == (0 if code in CODES["fine"] else code)
    assert LOOP["CronJob"]["spec"]["concurrencyPolicy"] == "Forbid"


def test_a_cron_job_of_the_loop_has_no_rights_it_does_not_need_and_a_configuration_that_is_taken(
    tmp_path: Path,
) -> None:
    pod = LOOP["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"] == POD["securityContext"]
    assert container["securityContext"] == CONTAINERS[0]["securityContext"]
    assert pod["automountServiceAccountToken"] is False
    (tmp_path / "loop.yaml").write_text(LOOP["ConfigMap"]["data"]["loop.yaml"])
    given = argparse.Namespace(config=tmp_path / "loop.yaml")
    settings = config.resolve("retrain", RetrainSettings, given, {container["env"][0]["name"]: "redis://redis"})
    config.resolve("index", RebuildSettings, given, {})
    assert settings.users == "redis://redis"
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/store", "/retrain", "/tmp"]
    for name in ("store", "work"):
        assert str(settings.place(name)).startswith(tuple(writable))


def test_a_unit_of_the_loop_knows_its_exit_codes() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read(ROOT / "deploy/systemd/lhydra-retrain.service")
    service = unit["Service"]
    assert {int(code) for code in service["SuccessExitStatus"].split()} == {*CODES["fine"], 130}
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} == CODES["for people"]
    words = service["ExecStart"].split()
    parser = argparse.ArgumentParser()
    retrain.configure(parser)
    assert words[1] == "retrain"
    parser.parse_args(words[2:])
    timer = configparser.ConfigParser(interpolation=None)
    timer.read(ROOT / "deploy/systemd/lhydra-retrain.timer")
    assert timer["Install"]["WantedBy"] == "timers.target"
