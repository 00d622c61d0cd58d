//! `/healthz`, `/livez` and `/readyz`: checks by name, all together or one alone.
//! Source: apiserver `pkg/server/healthz/healthz.go`.

use std::{sync::atomic::Ordering, time::Duration};

use super::{Response, Server, body};
use crate::meta::options::Query;

/// A database that does not answer within this time is not there.
const STORE_WITHIN: Duration = Duration::from_secs(2);

/// What is asked, in order and under upstream's names. What is not in [`run`] was done before the server answered anything.
#[rustfmt::skip]
const CHECKS: [&str; 26] = ["ping", "log", "etcd", INFORMERS, "poststarthook/start-apiserver-admission-initializer", "poststarthook/generic-apiserver-start-informers",
    "poststarthook/priority-and-fairness-config-consumer", "poststarthook/storage-readiness", "poststarthook/start-apiextensions-informers", "poststarthook/start-apiextensions-controllers",
    "poststarthook/crd-informer-synced", "poststarthook/bootstrap-controller", "poststarthook/start-system-namespaces-controller", "poststarthook/start-service-ip-repair-controllers",
    BOOTSTRAP, "poststarthook/scheduling/bootstrap-system-priority-classes", "poststarthook/start-cluster-authentication-info-controller", "poststarthook/start-kube-aggregator-informers",
    "poststarthook/apiservice-registration-controller", "poststarthook/apiservice-status-local-available-controller", "poststarthook/apiservice-status-remote-available-controller",
    "poststarthook/kube-apiserver-autoregistration", "autoregister-completion", "poststarthook/apiservice-openapi-controller", "poststarthook/apiservice-openapiv3-controller", SHUTDOWN];
/// The first objects are there, and with them the rights of everybody but the administrator.
const BOOTSTRAP: &str = "poststarthook/rbac/bootstrap-roles";
const INFORMERS: &str = "informer-sync";
const SHUTDOWN: &str = "shutdown";
/// What says only whether clients should come.
const READINESS: [&str; 3] = [BOOTSTRAP, INFORMERS, SHUTDOWN];
/// The results of all checks as metrics, asked for once more.
const SLIS: &str = "/metrics/slis";
const ROOTS: [&str; 3] = ["healthz", "livez", "readyz"];

/// The answer to a path of health; `None` for other paths.
pub async fn serve(server: &Server, path: &str, query: &Query) -> Option<Response> {
    if path == SLIS {
        for check in CHECKS {
            run(server, "readyz", check).await;
        }
        return Some(server.metrics.serve_slis());
    }
    let (root, name) = path.trim_matches('/').split_once('/').unwrap_or((path.trim_matches('/'), ""));
    let root = ROOTS.into_iter().find(|it| *it == root)?;
    let checks = CHECKS.into_iter().filter(|it| !READINESS.contains(it) || root == "readyz");
    if !name.is_empty() {
        let name = checks.into_iter().find(|it| *it == name)?;
        return Some(match run(server, root, name).await {
            true => body::text(200, "ok"),
            false => body::text(500, "internal server error: reason withheld\n"),
        });
    }
    let mut excluded: Vec<String> = query.all("exclude").map(str::to_owned).collect();
    let (mut lines, mut has_failed) = (String::new(), false);
    for check in checks {
        let known = excluded.len();
        excluded.retain(|it| it != check);
        lines += &match excluded.len() < known {
            true => format!("[+]{check} excluded: ok\n"),
            false if run(server, root, check).await => format!("[+]{check} ok\n"),
            false => {
                has_failed = true;
                format!("[-]{check} failed: reason withheld\n")
            }
        };
    }
    if !excluded.is_empty() {
        let names: Vec<String> = excluded.iter().map(|it| format!("{it:?}")).collect();
        lines += &format!("warn: some health checks cannot be excluded: no matches for {}\n", names.join(", "));
    }
    Some(match (has_failed, query.get("verbose")) {
        (true, _) => body::text(500, format!("{lines}{root} check failed\n")),
        (false, None) => body::text(200, "ok"),
        (false, Some(_)) => body::text(200, format!("{lines}{root} check passed\n")),
    })
}

/// Runs a check, and counts how it went.
async fn run(server: &Server, root: &'static str, check: &str) -> bool {
    let is_well = match check {
        "etcd" => store(server).await.is_ok(),
        BOOTSTRAP => server.is_bootstrapped.load(Ordering::Relaxed),
        // A server that is about to stop takes no new clients.
        SHUTDOWN => !server.tasks.is_stopping(),
        _ => true,
    };
    server.metrics.checked(check, root, is_well);
    is_well
}

/// Whether the store answers, or why not.
pub async fn store(server: &Server) -> Result<(), String> {
    let answer = tokio::time::timeout(STORE_WITHIN, server.store.consistent()).await.map_err(|it| it.to_string())?;
    answer.map(drop).map_err(|it| it.to_string())
}
