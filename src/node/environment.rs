//! The values that a pod's fields, resources, ConfigMaps and Secrets give to its containers.
//! Source: kubelet `pkg/kubelet/kubelet_pods.go` (`makeEnvironmentVariables`), `pkg/fieldpath`, `pkg/api/v1/resource/helpers.go`.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Container, EnvVarSource, ObjectFieldSelector, Pod, ResourceFieldSelector, Service};
use kube::ResourceExt;

use super::volumes::Sources;
use crate::{
    client::{Error, Result},
    meta::Quantity,
};

/// What a node has, for limits that a container does not set.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub storage_bytes: i64,
}

/// Variables in the order in which they were set; a name set again keeps its place.
#[derive(Default)]
pub struct Environment {
    order: Vec<String>,
    pub values: HashMap<String, String>,
}

impl Environment {
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        if self.values.insert(name.to_owned(), value.into()).is_none() {
            self.order.push(name.to_owned());
        }
    }

    fn set_if_missing(&mut self, name: &str, value: &str) {
        if !self.values.contains_key(name) {
            self.set(name, value);
        }
    }

    /// `NAME=value`, each.
    pub fn pairs(&self) -> Vec<String> {
        self.order.iter().map(|name| format!("{name}={}", self.values.get(name).map_or("", String::as_str))).collect()
    }

    /// Adds what the image and the runtime give, where the pod says nothing.
    pub fn complete(&mut self, image: &[String], hostname: &str, has_terminal: bool) {
        for pair in image {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            self.set_if_missing(name, value);
        }
        self.set_if_missing("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        self.set_if_missing("HOSTNAME", hostname);
        if has_terminal {
            self.set_if_missing("TERM", "xterm");
        }
    }
}

/// The variables by which containers find Services (`pkg/kubelet/envvars`): those of the pod's namespace, and the API's.
pub fn of_services(services: &[impl AsRef<Service>], pod: &Pod, api_address: &str) -> Vec<(String, String)> {
    let has_links = pod.spec.as_ref().and_then(|it| it.enable_service_links) != Some(false);
    let is_master = |it: &Service| it.namespace().as_deref() == Some("default") && it.name_any() == "kubernetes";
    let visible = services.iter().map(AsRef::as_ref).filter(|it| is_master(it) || has_links && it.namespace() == pod.namespace());
    let mut variables = Vec::new();
    let mut has_master = false;
    for service in visible {
        let spec = service.spec.as_ref();
        let address = spec.and_then(|it| it.cluster_ip.clone()).filter(|it| !it.is_empty() && it != "None");
        let (Some(address), Some(ports)) = (address, spec.and_then(|it| it.ports.clone())) else { continue };
        has_master |= is_master(service);
        let prefix = service.name_any().to_uppercase().replace('-', "_");
        let Some(first) = ports.first() else { continue };
        variables.push((format!("{prefix}_SERVICE_HOST"), address.clone()));
        variables.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
        for port in &ports {
            if let Some(name) = port.name.as_deref().filter(|it| !it.is_empty()) {
                variables.push((format!("{prefix}_SERVICE_PORT_{}", name.to_uppercase().replace('-', "_")), port.port.to_string()));
            }
        }
        let protocol = |port: &Option<String>| port.clone().unwrap_or_else(|| "TCP".to_owned());
        variables.push((format!("{prefix}_PORT"), format!("{}://{address}:{}", protocol(&first.protocol).to_lowercase(), first.port)));
        for port in &ports {
            let (protocol, head) = (protocol(&port.protocol), format!("{prefix}_PORT_{}_{}", port.port, protocol(&port.protocol)));
            variables.push((head.clone(), format!("{}://{address}:{}", protocol.to_lowercase(), port.port)));
            variables.push((format!("{head}_PROTO"), protocol.to_lowercase()));
            variables.push((format!("{head}_PORT"), port.port.to_string()));
            variables.push((format!("{head}_ADDR"), address.clone()));
        }
    }
    if !has_master {
        variables.extend([("KUBERNETES_SERVICE_HOST".to_owned(), api_address.to_owned()), ("KUBERNETES_SERVICE_PORT".to_owned(), "443".to_owned())]);
    }
    variables
}

impl Sources {
    /// The pod's own part of a container's environment, after `services`.
    pub async fn environment(&self, pod: &Pod, container: &Container, services: Vec<(String, String)>) -> Result<Environment> {
        let mut environment = Environment::default();
        services.into_iter().for_each(|(name, value)| environment.set(&name, value));
        for source in container.env_from.iter().flatten() {
            let data = match (&source.config_map_ref, &source.secret_ref) {
                (Some(map), _) => self.config_map(&map.name, map.optional == Some(true)).await?,
                (_, Some(secret)) => self.secret(&secret.name, secret.optional == Some(true)).await?,
                _ => None,
            };
            let prefix = source.prefix.as_deref().unwrap_or_default();
            data.into_iter().flatten().for_each(|(key, value)| environment.set(&format!("{prefix}{key}"), String::from_utf8_lossy(&value)));
        }
        for variable in container.env.iter().flatten() {
            let value = match &variable.value_from {
                Some(source) => self.value(pod, container, source).await?,
                None => Some(expand(variable.value.as_deref().unwrap_or_default(), &environment.values)),
            };
            value.into_iter().for_each(|it| environment.set(&variable.name, it));
        }
        Ok(environment)
    }

    async fn value(&self, pod: &Pod, container: &Container, source: &EnvVarSource) -> Result<Option<String>> {
        if let Some(field) = &source.field_ref {
            return Ok(Some(field_value(pod, field)));
        }
        if let Some(field) = &source.resource_field_ref {
            return Ok(Some(resource_value(pod, Some(container), field, &self.machine)));
        }
        let (kind, name, key, is_optional, data) = match (&source.config_map_key_ref, &source.secret_key_ref) {
            (Some(it), _) => ("ConfigMap", &it.name, &it.key, it.optional == Some(true), self.config_map(&it.name, it.optional == Some(true)).await?),
            (_, Some(it)) => ("Secret", &it.name, &it.key, it.optional == Some(true), self.secret(&it.name, it.optional == Some(true)).await?),
            _ => return Ok(None),
        };
        match data.and_then(|it| it.get(key).cloned()) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            None if is_optional => Ok(None),
            None => Err(Error::Invalid(format!("couldn't find key {key} in {kind} {}/{name}", self.namespace))),
        }
    }
}

/// Replaces `$(NAME)` by the variable's value; `$$` is a dollar, and what is not known stays (`third_party/forked/golang/expansion`).
pub fn expand(text: &str, values: &HashMap<String, String>) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(more) = after.strip_prefix('$') {
            out.push('$');
            rest = more;
        } else if let Some((name, more)) = after.strip_prefix('(').and_then(|it| it.split_once(')')) {
            match values.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = more;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out + rest
}

/// `metadata.name`, `status.podIP`, `metadata.labels['a']` and so on (`ExtractFieldPathAsString`).
pub fn field_value(pod: &Pod, field: &ObjectFieldSelector) -> String {
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    let pairs = |map: &BTreeMap<String, String>| map.iter().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n");
    let one = |map: &BTreeMap<String, String>, path: &str| map.get(path.trim_start_matches("['").trim_end_matches("']")).cloned();
    let found = match field.field_path.as_str() {
        "metadata.name" => pod.metadata.name.clone(),
        "metadata.namespace" => pod.metadata.namespace.clone(),
        "metadata.uid" => pod.metadata.uid.clone(),
        "metadata.labels" => Some(pairs(pod.labels())),
        "metadata.annotations" => Some(pairs(pod.annotations())),
        "spec.nodeName" => spec.and_then(|it| it.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|it| it.service_account_name.clone()),
        "status.podIP" | "status.podIPs" => status.and_then(|it| it.pod_ip.clone()),
        "status.hostIP" | "status.hostIPs" => status.and_then(|it| it.host_ip.clone()),
        path => match (path.strip_prefix("metadata.labels"), path.strip_prefix("metadata.annotations")) {
            (Some(key), _) => one(pod.labels(), key),
            (_, Some(key)) => one(pod.annotations(), key),
            _ => None,
        },
    };
    found.unwrap_or_default()
}

/// `limits.cpu` and its like, in units of the divisor, rounded up (`ExtractContainerResourceValue`).
pub fn resource_value(pod: &Pod, own: Option<&Container>, field: &ResourceFieldSelector, machine: &Machine) -> String {
    let named = || {
        let name = field.container_name.as_deref()?;
        let spec = pod.spec.as_ref()?;
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|it| it.name == name)
    };
    let resources = named().or(own).and_then(|it| it.resources.as_ref());
    let (list, name) = field.resource.split_once('.').unwrap_or(("limits", &field.resource));
    let amounts = resources.and_then(|it| if list == "requests" { it.requests.as_ref() } else { it.limits.as_ref() });
    let set: Option<Quantity> = amounts.and_then(|it| it.get(name)).and_then(|it| it.0.parse().ok());
    let is_cpu = name == "cpu";
    let measure = |it: Quantity| if is_cpu { it.millis() } else { it.units() };
    let default = match (list, name) {
        ("requests", _) => 0,
        (_, "cpu") => machine.cpu_millis,
        (_, "memory") => machine.memory_bytes,
        (_, "ephemeral-storage") => machine.storage_bytes,
        _ => 0,
    };
    let divisor: Option<Quantity> = field.divisor.as_ref().and_then(|it| it.0.parse().ok()).filter(|it: &Quantity| !it.is_zero());
    let divisor = divisor.map_or(if is_cpu { 1000 } else { 1 }, measure).max(1);
    let value = set.map_or(default, measure);
    ((value + divisor - 1) / divisor).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_to_variables_expand() {
        let values = HashMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, expanded) in [("$(A)", "1"), ("x$(A)y$(B)", "x1y$(B)"), ("$$(A)", "$(A)"), ("$", "$"), ("$(A", "$(A")] {
            assert_eq!(expand(text, &values), expanded, "{text}");
        }
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let machine = Machine { cpu_millis: 4000, memory_bytes: 1 << 30, storage_bytes: 0 };
        let container: Container = serde_json::from_value(json!({"name": "c", "resources": {"limits": {"cpu": "1250m"}, "requests": {"memory": "33Mi"}}})).expect("a container");
        let cases = [("limits.cpu", "", "2"), ("limits.cpu", "1m", "1250"), ("requests.memory", "1Mi", "33"), ("limits.memory", "", "1073741824"), ("requests.cpu", "", "0")];
        for (resource, divisor, expected) in cases {
            let field = serde_json::from_value(json!({"resource": resource, "divisor": if divisor.is_empty() { "0" } else { divisor }})).expect("a selector");
            assert_eq!(resource_value(&Pod::default(), Some(&container), &field, &machine), expected, "{resource} / {divisor}");
        }
    }

    #[test]
    fn services_are_known_by_variables() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "my-db", "namespace": "a"}, "spec": {"clusterIP": "10.0.0.7", "ports": [{"name": "sql", "port": 5432}]}})).expect("a Service");
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "a"}})).expect("a Pod");
        let variables = of_services(&[std::sync::Arc::new(service)], &pod, "10.0.0.1");
        let value = |name: &str| variables.iter().find(|it| it.0 == name).map(|it| it.1.as_str());
        assert_eq!(value("MY_DB_SERVICE_HOST"), Some("10.0.0.7"));
        assert_eq!(value("MY_DB_SERVICE_PORT_SQL"), Some("5432"));
        assert_eq!(value("MY_DB_PORT_5432_TCP"), Some("tcp://10.0.0.7:5432"));
        assert_eq!(value("KUBERNETES_SERVICE_HOST"), Some("10.0.0.1"));
    }
}
