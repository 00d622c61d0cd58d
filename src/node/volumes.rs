//! What a pod mounts, as directories on the node, and the values of its environment.
//! Source: kubelet `pkg/volume/{configmap,secret,projected,downwardapi,emptydir}`, `pkg/kubelet/kubelet_pods.go`.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{ConfigMap, Container, KeyToPath, ObjectFieldSelector, Pod, Secret, ServiceAccount, Volume, VolumeProjection},
    },
};
use kube::{Api, ResourceExt, api::PostParams};

use crate::client::{Error, Result};

/// A token is asked for anew when it has been used for this part of its life.
const TOKEN_USED: f64 = 0.8;
const TOKEN_SECONDS: i64 = 3600;
const DEFAULT_MODE: i32 = 0o644;

/// Reads the objects that a pod refers to.
pub struct Sources {
    pub client: kube::Client,
    pub namespace: String,
}

fn failed(what: &Path) -> impl FnOnce(io::Error) -> Error {
    let what = what.display().to_string();
    move |why| Error::Invalid(format!("{what}: {why}"))
}

impl Sources {
    async fn config_map(&self, name: &str, is_optional: bool) -> Result<BTreeMap<String, Vec<u8>>> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let Some(map) = api.get_opt(name).await? else { return missing("configmap", name, is_optional) };
        let texts = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
        Ok(texts.chain(map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0))).collect())
    }

    async fn secret(&self, name: &str, is_optional: bool) -> Result<BTreeMap<String, Vec<u8>>> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        match api.get_opt(name).await? {
            Some(secret) => Ok(secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect()),
            None => missing("secret", name, is_optional),
        }
    }

    async fn token(&self, pod: &Pod, audience: Option<&str>, seconds: Option<i64>) -> Result<Vec<u8>> {
        let account = pod.spec.as_ref().and_then(|it| it.service_account_name.clone()).unwrap_or_else(|| "default".to_owned());
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let bound = BoundObjectReference { api_version: Some("v1".into()), kind: Some("Pod".into()), name: pod.metadata.name.clone(), uid: pod.metadata.uid.clone() };
        let spec = TokenRequestSpec { audiences: Some(audience.map(str::to_owned).into_iter().collect()), bound_object_ref: Some(bound), expiration_seconds: seconds };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answer = api.create_token_request(&account, &PostParams::default(), &request).await?;
        Ok(answer.status.and_then(|it| it.token).map(String::into_bytes).unwrap_or_default())
    }

    /// Makes or refreshes a volume, and returns its directory.
    pub async fn volume(&self, pod: &Pod, volume: &Volume, root: &Path) -> Result<PathBuf> {
        if let Some(host) = &volume.host_path {
            let path = PathBuf::from(&host.path);
            if matches!(host.type_.as_deref(), Some("DirectoryOrCreate")) {
                fs::create_dir_all(&path).map_err(failed(&path))?;
            }
            return Ok(path);
        }
        let folder = root.join(&volume.name);
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let group = pod.spec.as_ref().and_then(|it| it.security_context.as_ref()?.fs_group).and_then(|it| u32::try_from(it).ok());
        if volume.empty_dir.is_some() {
            fs::set_permissions(&folder, fs::Permissions::from_mode(if group.is_some() { 0o2777 } else { 0o777 })).map_err(failed(&folder))?;
            chown(&folder, None, group).map_err(failed(&folder))?;
            return Ok(folder);
        }
        let files = self.files(pod, volume, &folder).await?;
        write_files(&folder, files, group)?;
        Ok(folder)
    }

    async fn files(&self, pod: &Pod, volume: &Volume, folder: &Path) -> Result<Vec<File>> {
        if let Some(source) = &volume.config_map {
            let data = self.config_map(&source.name, source.optional == Some(true)).await?;
            return Ok(choose(data, source.items.as_deref(), source.default_mode));
        }
        if let Some(source) = &volume.secret {
            let data = self.secret(source.secret_name.as_deref().unwrap_or_default(), source.optional == Some(true)).await?;
            return Ok(choose(data, source.items.as_deref(), source.default_mode));
        }
        if let Some(source) = &volume.downward_api {
            return Ok(downward(pod, source.items.iter().flatten().map(|it| (it.path.as_str(), it.field_ref.as_ref(), it.mode)), source.default_mode));
        }
        let Some(projected) = &volume.projected else {
            return Err(Error::Invalid(format!("volume {:?} is of a kind that this node does not have", volume.name)));
        };
        let mut files = Vec::new();
        for source in projected.sources.iter().flatten() {
            files.extend(self.projection(pod, source, projected.default_mode, folder).await?);
        }
        Ok(files)
    }

    async fn projection(&self, pod: &Pod, source: &VolumeProjection, mode: Option<i32>, folder: &Path) -> Result<Vec<File>> {
        if let Some(token) = &source.service_account_token {
            let seconds = token.expiration_seconds.unwrap_or(TOKEN_SECONDS);
            if is_fresh(&folder.join(&token.path), seconds) {
                return Ok(Vec::new());
            }
            let content = self.token(pod, token.audience.as_deref(), Some(seconds)).await?;
            return Ok(vec![File { path: token.path.clone(), content, mode: mode.unwrap_or(DEFAULT_MODE) }]);
        }
        if let Some(source) = &source.config_map {
            return Ok(choose(self.config_map(&source.name, source.optional == Some(true)).await?, source.items.as_deref(), mode));
        }
        if let Some(source) = &source.secret {
            return Ok(choose(self.secret(&source.name, source.optional == Some(true)).await?, source.items.as_deref(), mode));
        }
        let items = source.downward_api.iter().flat_map(|it| it.items.iter().flatten());
        Ok(downward(pod, items.map(|it| (it.path.as_str(), it.field_ref.as_ref(), it.mode)), mode))
    }

    /// The environment of a container as `NAME=value`, over that of its image.
    pub async fn environment(&self, pod: &Pod, container: &Container, image: &[String], extra: &[(String, String)]) -> Result<Vec<String>> {
        let mut values: HashMap<String, String> = extra.iter().cloned().collect();
        let mut order: Vec<String> = extra.iter().map(|(name, _)| name.clone()).collect();
        let mut set = |values: &mut HashMap<String, String>, name: &str, value: String| {
            if values.insert(name.to_owned(), value).is_none() {
                order.push(name.to_owned());
            }
        };
        for pair in image {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            set(&mut values, name, value.to_owned());
        }
        for source in container.env_from.iter().flatten() {
            let data = match (&source.config_map_ref, &source.secret_ref) {
                (Some(map), _) => self.config_map(&map.name, map.optional == Some(true)).await?,
                (_, Some(secret)) => self.secret(&secret.name, secret.optional == Some(true)).await?,
                _ => BTreeMap::new(),
            };
            let prefix = source.prefix.as_deref().unwrap_or_default();
            data.into_iter().for_each(|(key, value)| set(&mut values, &format!("{prefix}{key}"), String::from_utf8_lossy(&value).into_owned()));
        }
        for variable in container.env.iter().flatten() {
            let value = match (&variable.value, &variable.value_from) {
                (_, Some(source)) => match (&source.field_ref, &source.config_map_key_ref, &source.secret_key_ref) {
                    (Some(field), ..) => Some(field_value(pod, field)),
                    (_, Some(it), _) => text_at(self.config_map(&it.name, it.optional == Some(true)).await?, &it.key, it.optional == Some(true))?,
                    (_, _, Some(it)) => text_at(self.secret(&it.name, it.optional == Some(true)).await?, &it.key, it.optional == Some(true))?,
                    _ => None,
                },
                (value, None) => Some(expand(value.as_deref().unwrap_or_default(), &values)),
            };
            value.into_iter().for_each(|it| set(&mut values, &variable.name, it));
        }
        Ok(order.into_iter().map(|name| format!("{name}={}", values.get(&name).map_or("", String::as_str))).collect())
    }
}

fn missing<T: Default>(kind: &str, name: &str, is_optional: bool) -> Result<T> {
    if is_optional { Ok(T::default()) } else { Err(Error::Invalid(format!("{kind} {name:?} not found"))) }
}

fn text_at(data: BTreeMap<String, Vec<u8>>, key: &str, is_optional: bool) -> Result<Option<String>> {
    match data.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if is_optional => Ok(None),
        None => Err(Error::Invalid(format!("couldn't find key {key}"))),
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

/// `metadata.name`, `status.podIP`, `metadata.labels['a']` and so on.
fn field_value(pod: &Pod, field: &ObjectFieldSelector) -> String {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
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

struct File {
    path: String,
    content: Vec<u8>,
    mode: i32,
}

fn choose(data: BTreeMap<String, Vec<u8>>, items: Option<&[KeyToPath]>, mode: Option<i32>) -> Vec<File> {
    let mode = mode.unwrap_or(DEFAULT_MODE);
    match items {
        Some(items) if !items.is_empty() => items
            .iter()
            .filter_map(|it| Some(File { path: it.path.clone(), content: data.get(&it.key)?.clone(), mode: it.mode.unwrap_or(mode) }))
            .collect(),
        _ => data.into_iter().map(|(path, content)| File { path, content, mode }).collect(),
    }
}

fn downward<'a>(pod: &Pod, items: impl Iterator<Item = (&'a str, Option<&'a ObjectFieldSelector>, Option<i32>)>, mode: Option<i32>) -> Vec<File> {
    let file = |(path, field, own): (&str, Option<&ObjectFieldSelector>, Option<i32>)| {
        let content = field_value(pod, field?).into_bytes();
        Some(File { path: path.to_owned(), content, mode: own.or(mode).unwrap_or(DEFAULT_MODE) })
    };
    items.filter_map(file).collect()
}

fn is_fresh(path: &Path, seconds: i64) -> bool {
    let written = fs::metadata(path).and_then(|it| it.modified());
    let age = written.ok().and_then(|it| SystemTime::now().duration_since(it).ok());
    age.is_some_and(|it| it < Duration::from_secs_f64(seconds as f64 * TOKEN_USED))
}

/// Each file is replaced as a whole, so that a reader never sees half of one.
fn write_files(folder: &Path, files: Vec<File>, group: Option<u32>) -> Result<()> {
    for file in files {
        let path = folder.join(&file.path);
        if fs::read(&path).is_ok_and(|it| it == file.content) {
            continue;
        }
        let parent = path.parent().unwrap_or(folder);
        let new = parent.join(format!(".{}.new", uuid::Uuid::new_v4().simple()));
        let mode = u32::try_from(file.mode).unwrap_or(0o644) | if group.is_some() { 0o040 } else { 0 };
        let written = fs::create_dir_all(parent)
            .and_then(|()| fs::write(&new, &file.content))
            .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(mode)))
            .and_then(|()| chown(&new, None, group))
            .and_then(|()| fs::rename(&new, &path));
        written.map_err(failed(&path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_to_variables_expand() {
        let values = HashMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, expanded) in [("$(A)", "1"), ("x$(A)y$(B)", "x1y$(B)"), ("$$(A)", "$(A)"), ("$", "$"), ("$(A", "$(A")] {
            assert_eq!(expand(text, &values), expanded, "{text}");
        }
    }
}
