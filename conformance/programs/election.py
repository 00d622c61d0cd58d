"""Two candidates for one Lease: the second leads when the first has gone without a word."""

import threading, time

from kubernetes import client
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

from program import NAMESPACE, eventually

led, gone = [], threading.Event()


class Lock(LeaseLock):
    """A lock whose holder can vanish: its renewals reach nobody."""

    def update(self, *arguments):
        return False if gone.is_set() and self.identity == "first" else super().update(*arguments)


def candidate(name):
    config = electionconfig.Config(Lock("boss", NAMESPACE, name), lease_duration=3, renew_deadline=2, retry_period=1,
                                   onstarted_leading=lambda: led.append(name), onstopped_leading=lambda: led.append(f"{name} stopped"))
    threading.Thread(target=leaderelection.LeaderElection(config).run, daemon=True).start()


leases = client.CoordinationV1Api()
candidate("first")
eventually("the first leads", lambda: led == ["first"])
candidate("second")
time.sleep(4)
lease = leases.read_namespaced_lease("boss", NAMESPACE)
assert led == ["first"] and lease.spec.holder_identity == "first", led
assert lease.spec.renew_time > lease.spec.acquire_time and lease.spec.renew_time.microsecond > 0, lease.spec
gone.set()
eventually("the second leads", lambda: led == ["first", "first stopped", "second"], 20)
assert leases.read_namespaced_lease("boss", NAMESPACE).spec.holder_identity == "second"
