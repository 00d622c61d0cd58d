//! Upstream's kube-apiserver on an etcd of its own, for comparisons.

use std::{
    fs,
    path::{Path, PathBuf},
};

use howdah::base::{
    clock,
    pki::{Authority, Identity},
};

use crate::etcd::Etcd;

/// All that a kube-apiserver needs to be started; its database runs.
pub struct KubeApiserver {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub port: u16,
    /// Signs what its clients show.
    pub authority: Authority,
    pub etcd: Etcd,
}

impl KubeApiserver {
    /// The program is what `KUBE_APISERVER` names; `None`, and a word about it, where there is none, or no etcd.
    pub async fn prepare(folder: &Path) -> Option<Self> {
        let Some(program) = std::env::var_os("KUBE_APISERVER").map(PathBuf::from) else {
            println!("SKIPPED: upstream's kube-apiserver is not named by KUBE_APISERVER");
            return None;
        };
        fs::create_dir_all(folder).expect("a folder");
        let etcd = Etcd::start(folder).await?;
        let authority = Authority::generate(clock::now()).expect("an authority");
        let issue = |identity: Identity| authority.issue(&identity, clock::now()).expect("a certificate");
        let file = |name: &str, text: &str| {
            fs::write(folder.join(name), text).expect("a file");
            folder.join(name).display().to_string()
        };
        let (serving, accounts) = (issue(Identity::api_server(&[])), issue(Identity::front_proxy()));
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
        let address = howdah::process::machine_address().map_or("192.0.2.1".to_owned(), |it| it.to_string());
        let arguments = [
            ("etcd-servers", format!("http://127.0.0.1:{}", etcd.port)),
            ("bind-address", "127.0.0.1".to_owned()),
            ("advertise-address", address),
            ("endpoint-reconciler-type", "none".to_owned()),
            ("secure-port", port.to_string()),
            ("cert-dir", folder.display().to_string()),
            ("tls-cert-file", file("serving.crt", &serving.certificate)),
            ("tls-private-key-file", file("serving.key", &serving.key)),
            ("client-ca-file", file("ca.crt", authority.certificate())),
            ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            ("service-account-key-file", file("accounts.crt", &accounts.certificate)),
            ("service-account-signing-key-file", file("accounts.key", &accounts.key)),
            ("service-cluster-ip-range", "10.250.0.0/16".to_owned()),
            ("authorization-mode", "Node,RBAC".to_owned()),
        ];
        let arguments = arguments.iter().map(|(name, value)| format!("--{name}={value}")).collect();
        Some(Self { program, arguments, port, authority, etcd })
    }
}
