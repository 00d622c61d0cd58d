"""What the Python programs share: the cluster of $KUBECONFIG and a namespace of their own, as conformance/clients gives them."""

import os, sys, time

from kubernetes import client, config

config.load_kube_config()
NAMESPACE = os.environ["NAMESPACE"]
IMAGE = os.environ["IMAGE"]
core = client.CoreV1Api()
core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))


def eventually(what, condition, seconds=60):
    """The first true value of `condition`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


def refused(status, call, *arguments, **more):
    """The body of the error that `call` must end with."""
    try:
        call(*arguments, **more)
    except Exception as error:
        if getattr(error, "status", None) != status:
            raise
        return error.body.decode() if isinstance(error.body, bytes) else error.body
    raise AssertionError(f"{status} was expected")


def config_map(name, data=None, labels=None):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels=labels), data=data or {})


def running_pod(name, script, **more):
    """Creates a pod that runs a shell script, and waits until it runs."""
    eventually("pods can be made", lambda: core.list_namespaced_service_account(NAMESPACE).items)
    container = client.V1Container(name="main", image=IMAGE, command=["sh", "-c", script], **more)
    core.create_namespaced_pod(NAMESPACE, client.V1Pod(
        metadata=client.V1ObjectMeta(name=name, labels={"app": name}),
        spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=0)))
    eventually("the pod runs", lambda: core.read_namespaced_pod(name, NAMESPACE).status.phase == "Running")
    return name


def restart_server():
    """Has the server killed and started again."""
    print("RESTART", flush=True)
    assert sys.stdin.readline().strip() == "restarted"
