//! One of several processes leads: whoever renews the Lease. Follows client-go `tools/leaderelection`.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, api::PostParams};

use super::Result;
use crate::base::{Tasks, clock};

/// Shorter than upstream's 15, 10 and 2 seconds, so that another leads within 15 s of a leader's death: LEASE + RETRY and the filling of caches.
const LEASE: Duration = Duration::from_secs(10);
/// A leader that could not renew for this long stops, and has ENDS_WITHIN for it before another may lead.
const RENEW_DEADLINE: Duration = Duration::from_secs(6);
const RETRY: Duration = Duration::from_secs(2);
const ENDS_WITHIN: Duration = Duration::from_secs(3);

/// Runs what `start` starts whenever this process leads by the Lease `kube-system/{name}`. A leader that is told to stop gives the Lease up.
pub fn lead(client: kube::Client, name: &'static str, identity: &str, tasks: &Tasks, start: impl Fn(&Tasks) + Send + Sync + 'static) {
    let leases = Api::namespaced(client, "kube-system");
    let (mut elector, group) = (LeaderElector { leases, name, identity: identity.to_owned(), observed: None }, tasks.clone());
    tasks.spawn_finishing("leader-election", async move {
        loop {
            tokio::select! {
                () = elector.acquire() => (),
                () = group.stopping() => return,
            }
            let term = group.child();
            start(&term);
            tokio::select! {
                () = elector.keep() => (),
                () = group.stopping() => (),
                // A vital task of the term has ended.
                () = term.stopping() => (),
            }
            let has_ended = term.stop(ENDS_WITHIN).await;
            if has_ended {
                elector.release().await;
            }
            if group.is_stopping() {
                return;
            }
        }
    });
}

/// A candidate for the Lease `name`.
struct LeaderElector {
    leases: Api<Lease>,
    name: &'static str,
    identity: String,
    /// The record last seen and when it was first seen so: a holder is judged by our clock, not by the times it writes.
    observed: Option<(LeaseSpec, Instant)>,
}

impl LeaderElector {
    /// Completes when this candidate leads.
    async fn acquire(&mut self) {
        while !self.try_lead().await {
            tokio::time::sleep(RETRY).await;
        }
        tracing::info!(lease = self.name, identity = self.identity, "leading");
    }

    /// Completes when leadership is lost: renewing has failed for the renew deadline.
    async fn keep(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < RENEW_DEADLINE {
            tokio::time::sleep(RETRY).await;
            if self.try_lead().await {
                renewed = Instant::now();
            }
        }
        tracing::error!(lease = self.name, identity = self.identity, "leader election lost");
    }

    /// Lets another lead at once, as client-go's `ReleaseOnCancel` does.
    async fn release(&mut self) {
        if !matches!(tokio::time::timeout(RETRY, self.try_release()).await, Ok(Ok(()))) {
            tracing::debug!(lease = self.name, "the lease could not be given up");
        }
    }

    async fn try_release(&self) -> Result<()> {
        let Some(mut lease) = self.leases.get_opt(self.name).await? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            *spec = LeaseSpec { holder_identity: None, lease_duration_seconds: Some(1), lease_transitions: spec.lease_transitions, ..first_record("", clock::now()) };
            self.leases.replace(self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }

    async fn try_lead(&mut self) -> bool {
        let name = self.name;
        let tried = tokio::time::timeout(RETRY, self.try_write()).await.unwrap_or(Ok(false));
        tried.inspect_err(|error| tracing::debug!(lease = name, %error, "leader election")).unwrap_or(false)
    }

    async fn try_write(&mut self) -> Result<bool> {
        let Some(mut lease) = self.leases.get_opt(self.name).await? else {
            let mut lease = Lease { spec: Some(first_record(&self.identity, clock::now())), ..Lease::default() };
            lease.metadata.name = Some(self.name.to_owned());
            self.leases.create(&PostParams::default(), &lease).await?;
            return Ok(true);
        };
        let spec = lease.spec.take().unwrap_or_default();
        if self.observed.as_ref().is_none_or(|(seen, _)| *seen != spec) {
            self.observed = Some((spec.clone(), Instant::now()));
        }
        let age = self.observed.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let Some(next) = next_record(&spec, age, &self.identity, clock::now()) else { return Ok(false) };
        lease.spec = Some(next);
        self.leases.replace(self.name, &PostParams::default(), &lease).await?;
        Ok(true)
    }
}

fn first_record(identity: &str, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(LEASE.as_secs() as i32),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(0),
        ..LeaseSpec::default()
    }
}

/// Renews an own lease, takes a free or lapsed one (`age` is how long it has looked the same), leaves another's alone.
fn next_record(spec: &LeaseSpec, age: Duration, identity: &str, now: Timestamp) -> Option<LeaseSpec> {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    if holder == identity {
        return Some(LeaseSpec { acquire_time: spec.acquire_time.clone(), lease_transitions: spec.lease_transitions, ..first_record(identity, now) });
    }
    let duration = Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0).max(0) as u64);
    let is_free = holder.is_empty() || age >= duration;
    is_free.then(|| LeaseSpec { lease_transitions: Some(spec.lease_transitions.unwrap_or(0) + 1), ..first_record(identity, now) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_free_own_or_lapsed_lease_is_written() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let held = |by: &str| LeaseSpec { holder_identity: Some(by.into()), lease_transitions: Some(3), ..first_record(by, now) };
        let cases = [(held("a"), 0, Some(3)), (held("b"), 9, None), (held("b"), 10, Some(4)), (held(""), 0, Some(4))];
        for (spec, age, transitions) in cases {
            let next = next_record(&spec, Duration::from_secs(age), "a", now);
            assert_eq!(next.as_ref().and_then(|it| it.lease_transitions), transitions, "{spec:?}");
            assert!(next.is_none_or(|it| it.holder_identity.as_deref() == Some("a")));
        }
    }
}
