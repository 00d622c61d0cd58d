//! The part of a pod that its containers share: namespaces, an address, a name, the files of its resolver.
//! Source: kubelet `pkg/kubelet/network/dns/dns.go`, `pkg/kubelet/kubelet_pods.go` (`nodeHostsFileContent`, `GeneratePodHostNameAndDomain`).

use std::{
    collections::HashMap,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::ResourceExt;
use parking_lot::Mutex;

use super::{links, runtime::remove_namespaces};
use crate::meta::Cidr;

/// `hostNameMax` of Linux.
const HOSTNAME_MAX: usize = 63;
/// glibc and musl read that many (`MaxDNSNameservers`).
const NAMESERVERS_MAX: usize = 3;
const DOMAIN: &str = "cluster.local";

/// The sandboxes of one node, as folders below `root`.
pub struct Sandboxes {
    root: PathBuf,
    /// The node's part of the cluster's pod addresses, once it is known.
    pods: OnceLock<Cidr>,
    cluster_dns: String,
    /// Addresses in use, by pod uid.
    addresses: Mutex<HashMap<String, Ipv4Addr>>,
}

impl Sandboxes {
    /// Finds those that an earlier process left.
    pub fn open(root: PathBuf, cluster_dns: String) -> Self {
        let folders = fs::read_dir(&root).into_iter().flatten().flatten();
        let read = |it: fs::DirEntry| Some((it.file_name().to_string_lossy().into_owned(), fs::read_to_string(it.path().join("address")).ok()?.parse().ok()?));
        let addresses = Mutex::new(folders.filter_map(read).collect());
        Self { root, pods: OnceLock::new(), cluster_dns, addresses }
    }

    pub fn folder(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }

    /// Which addresses pods get from now on; the first answer counts.
    pub fn set_range(&self, pods: Cidr) {
        let _ = self.pods.set(pods);
    }

    pub fn has_range(&self) -> bool {
        self.pods.get().is_some()
    }

    /// The uids of all.
    pub fn uids(&self) -> Vec<String> {
        fs::read_dir(&self.root).into_iter().flatten().flatten().map(|it| it.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Makes what is missing of a pod's sandbox, and returns its own address if it has one.
    pub fn ensure(&self, pod: &Pod, spec: &PodSpec) -> io::Result<Option<Ipv4Addr>> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let address = if spec.host_network == Some(true) { None } else { Some(self.address(&uid)?) };
        let (hostname, folder) = (hostname(pod, spec), self.folder(&uid));
        fs::create_dir_all(&folder)?;
        if let Some(address) = address {
            fs::write(folder.join("address"), address.to_string())?;
        }
        links::create(&folder, &uid, &hostname, address, &sysctls(spec))?;
        write_if_changed(&folder.join("hostname"), format!("{hostname}\n"))?;
        write_if_changed(&folder.join("hosts"), hosts(pod, spec, address, &hostname))?;
        write_if_changed(&folder.join("resolv.conf"), self.resolv_conf(pod, spec))?;
        Ok(address)
    }

    fn address(&self, uid: &str) -> io::Result<Ipv4Addr> {
        let mut addresses = self.addresses.lock();
        if let Some(address) = addresses.get(uid) {
            return Ok(*address);
        }
        let pods = self.pods.get().ok_or_else(|| io::Error::other("network is not ready: the node has no range of pod addresses yet"))?;
        // The first is the tunnel's, the last would be a broadcast.
        let last = u32::try_from(pods.size()).unwrap_or(u32::MAX).saturating_sub(1);
        let free = (2..last).map(|it| pods.at(it)).find(|it| !addresses.values().any(|used| used == it));
        let address = free.ok_or_else(|| io::Error::other("no address is left for the pod"))?;
        addresses.insert(uid.to_owned(), address);
        Ok(address)
    }

    /// Takes a sandbox apart; its address may be given to another.
    pub fn remove(&self, uid: &str) {
        links::remove(uid);
        remove_namespaces(&self.folder(uid));
        self.addresses.lock().remove(uid);
    }

    /// The resolver's configuration by the pod's policy, with what the pod adds.
    fn resolv_conf(&self, pod: &Pod, spec: &PodSpec) -> String {
        let host = || Resolver::read(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        let mut resolver = match spec.dns_policy.as_deref() {
            Some("None") => Resolver::default(),
            Some("Default") => host(),
            Some("ClusterFirst") if spec.host_network == Some(true) => host(),
            _ => {
                let namespace = pod.namespace().unwrap_or_default();
                let own = [format!("{namespace}.svc.{DOMAIN}"), format!("svc.{DOMAIN}"), DOMAIN.to_owned()];
                let mut searches = own.to_vec();
                searches.extend(host().searches.into_iter().filter(|it| !own.contains(it)));
                Resolver { nameservers: vec![self.cluster_dns.clone()], searches, options: vec![("ndots".to_owned(), Some("5".to_owned()))] }
            }
        };
        if let Some(config) = &spec.dns_config {
            resolver.nameservers.extend(config.nameservers.iter().flatten().cloned());
            resolver.searches.extend(config.searches.iter().flatten().cloned());
            for option in config.options.iter().flatten() {
                let name = option.name.clone().unwrap_or_default();
                resolver.options.retain(|it| it.0 != name);
                resolver.options.push((name, option.value.clone()));
            }
        }
        resolver.write()
    }
}

/// `resolv.conf(5)`.
#[derive(Debug, Default, PartialEq)]
struct Resolver {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<(String, Option<String>)>,
}

impl Resolver {
    fn read(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => resolver.nameservers.extend(words.next()),
                Some("search" | "domain") => resolver.searches = words.collect(),
                Some("options") => resolver.options.extend(words.map(|it| match it.split_once(':') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (it, None),
                })),
                _ => (),
            }
        }
        resolver
    }

    fn write(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text += &format!("search {}\n", self.searches.join(" "));
        }
        self.nameservers.iter().take(NAMESERVERS_MAX).for_each(|it| text += &format!("nameserver {it}\n"));
        if !self.options.is_empty() {
            let option = |(name, value): &(String, Option<String>)| value.as_ref().map_or_else(|| name.clone(), |it| format!("{name}:{it}"));
            text += &format!("options {}\n", self.options.iter().map(option).collect::<Vec<_>>().join(" "));
        }
        text
    }
}

/// The pod's name inside: its own `hostname`, or the name of the pod.
pub fn hostname(pod: &Pod, spec: &PodSpec) -> String {
    if spec.host_network == Some(true) {
        return nix::unistd::gethostname().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
    }
    if let Some(name) = &spec.hostname_override {
        return name.clone();
    }
    let name = spec.hostname.clone().filter(|it| !it.is_empty()).unwrap_or_else(|| pod.name_any());
    let name = name.chars().take(HOSTNAME_MAX).collect::<String>().trim_end_matches(['-', '.']).to_owned();
    match domain(pod, spec) {
        Some(domain) if spec.set_hostname_as_fqdn == Some(true) => format!("{name}.{domain}"),
        _ => name,
    }
}

fn domain(pod: &Pod, spec: &PodSpec) -> Option<String> {
    let subdomain = spec.subdomain.as_deref().filter(|it| !it.is_empty())?;
    Some(format!("{subdomain}.{}.svc.{DOMAIN}", pod.namespace().unwrap_or_default()))
}

fn hosts(pod: &Pod, spec: &PodSpec, address: Option<Ipv4Addr>, hostname: &str) -> String {
    let mut text = match address {
        None => format!("# Kubernetes-managed hosts file (host network).\n{}", fs::read_to_string("/etc/hosts").unwrap_or_default()),
        Some(address) => {
            let head = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";
            let full = domain(pod, spec).map(|it| format!("{hostname}.{it}\t")).filter(|_| spec.set_hostname_as_fqdn != Some(true)).unwrap_or_default();
            format!("{head}{address}\t{full}{hostname}\n")
        }
    };
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text += "\n# Entries added by HostAliases.\n";
        aliases.iter().for_each(|it| text += &format!("{}\t{}\n", it.ip, it.hostnames.as_deref().unwrap_or_default().join("\t")));
    }
    text
}

fn sysctls(spec: &PodSpec) -> Vec<(String, String)> {
    let asked = spec.security_context.as_ref().and_then(|it| it.sysctls.as_ref());
    asked.into_iter().flatten().map(|it| (it.name.clone(), it.value.clone())).collect()
}

fn write_if_changed(path: &Path, text: String) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|it| it == text) { Ok(()) } else { fs::write(path, text) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "a", "uid": "u"}, "spec": spec})).expect("a Pod")
    }

    #[test]
    fn pods_have_names() {
        let cases = [
            (json!({"containers": []}), "web-0"),
            (json!({"containers": [], "hostname": "own"}), "own"),
            (json!({"containers": [], "hostname": "own", "subdomain": "s", "setHostnameAsFQDN": true}), "own.s.a.svc.cluster.local"),
        ];
        for (spec, expected) in cases {
            let pod = pod(spec);
            assert_eq!(hostname(&pod, pod.spec.as_ref().expect("a spec")), expected);
        }
    }

    #[test]
    fn resolvers_follow_policy_and_configuration() {
        let sandboxes = Sandboxes::open("/nowhere".into(), "10.0.0.10".to_owned());
        let spec = json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["x.y"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}});
        let pod = pod(spec);
        assert_eq!(sandboxes.resolv_conf(&pod, pod.spec.as_ref().expect("a spec")), "search x.y\nnameserver 1.1.1.1\noptions ndots:2 edns0\n");
    }

    #[test]
    fn hosts_files_have_aliases() {
        let pod = pod(json!({"containers": [], "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let text = hosts(&pod, pod.spec.as_ref().expect("a spec"), Some(Ipv4Addr::new(10, 0, 0, 2)), "web-0");
        assert!(text.contains("10.0.0.2\tweb-0\n") && text.ends_with("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
    }
}
