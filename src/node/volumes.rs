//! What a pod mounts, as directories on the node.
//! Source: kubelet `pkg/volume/{configmap,secret,projected,downwardapi,emptydir,hostpath}`, `pkg/volume/util/atomic_writer.go`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{ConfigMap, DownwardAPIVolumeFile, EmptyDirVolumeSource, HostPathVolumeSource, KeyToPath, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccount, Volume, VolumeProjection},
    },
};
use kube::{Api, api::PostParams};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::environment::{Machine, field_value, resource_value};
use crate::{
    base::clock,
    client::{Error, Result, volumes},
    meta::{Meta, Quantity, Value},
};

/// A token is asked for anew when it has been used for this part of its life.
const TOKEN_USED: f64 = 0.8;
const TOKEN_SECONDS: i64 = 3600;
const DEFAULT_MODE: i32 = 0o644;
/// The link to the newest set of files, and its name while it is made.
const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Reads the objects that a pod refers to.
pub struct Sources {
    pub client: kube::Client,
    pub namespace: String,
    pub machine: Machine,
}

type Data = BTreeMap<String, Vec<u8>>;

fn failed(what: &Path) -> impl FnOnce(io::Error) -> Error {
    let what = what.display().to_string();
    move |why| Error::Invalid(format!("{what}: {why}"))
}

impl Sources {
    /// The data of a ConfigMap; `None` where it may be missing and is.
    pub async fn config_map(&self, name: &str, is_optional: bool) -> Result<Option<Data>> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let Some(map) = api.get_opt(name).await? else { return missing("configmap", name, is_optional) };
        let texts = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
        Ok(Some(texts.chain(map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0))).collect()))
    }

    pub async fn secret(&self, name: &str, is_optional: bool) -> Result<Option<Data>> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        match api.get_opt(name).await? {
            Some(secret) => Ok(Some(secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect())),
            None => missing("secret", name, is_optional),
        }
    }

    async fn token(&self, pod: &Pod, audience: Option<&str>, seconds: i64) -> Result<Vec<u8>> {
        let account = pod.spec.as_ref().and_then(|it| it.service_account_name.clone()).unwrap_or_else(|| "default".to_owned());
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let bound = BoundObjectReference { api_version: Some("v1".into()), kind: Some("Pod".into()), name: pod.metadata.name.clone(), uid: pod.metadata.uid.clone() };
        let spec = TokenRequestSpec { audiences: Some(audience.map(str::to_owned).into_iter().collect()), bound_object_ref: Some(bound), expiration_seconds: Some(seconds) };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answer = api.create_token_request(&account, &PostParams::default(), &request).await?;
        Ok(answer.status.and_then(|it| it.token).map(String::into_bytes).unwrap_or_default())
    }

    /// Makes or refreshes a volume, and returns its directory.
    pub async fn volume(&self, pod: &Pod, volume: &Volume, root: &Path) -> Result<PathBuf> {
        if let Some(host) = &volume.host_path {
            return host_path(host);
        }
        if let Some((claim, is_made)) = volumes::claim_name(pod, volume) {
            return self.claimed(pod, &claim, is_made).await;
        }
        let folder = root.join(&volume.name);
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let owner = Owner::of(pod);
        if let Some(source) = &volume.empty_dir {
            empty_dir(&folder, source, owner.group).map_err(failed(&folder))?;
            return Ok(folder);
        }
        let files = self.files(pod, volume, &folder).await?;
        write_files(&folder, &files, owner).map_err(failed(&folder))?;
        Ok(folder)
    }

    /// Where the volume of a claim is: on this node, in its own file system.
    async fn claimed(&self, pod: &Pod, name: &str, is_made: bool) -> Result<PathBuf> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &self.namespace);
        let claim = claims.get(name).await?;
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(Error::Invalid(format!("can't start pod because PVC {name} is being deleted")));
        }
        if is_made {
            volumes::is_made_for(&claim, pod).map_err(Error::Invalid)?;
        }
        if claim.status.as_ref().and_then(|it| it.phase.as_deref()) != Some("Bound") || volumes::volume_name(&claim).is_empty() {
            return Err(Error::Invalid(format!("PVC {name} is not bound")));
        }
        let volume = Api::<PersistentVolume>::all(self.client.clone()).get(volumes::volume_name(&claim)).await?;
        let spec = volume.spec.unwrap_or_default();
        if spec.claim_ref.as_ref().and_then(|it| it.uid.as_ref()) != claim.metadata.uid.as_ref() {
            return Err(Error::Invalid(format!("PV {:?} is not bound to PVC {name}", volumes::volume_name(&claim))));
        }
        match (&spec.host_path, &spec.local) {
            (Some(source), _) => host_path(source),
            (_, Some(source)) => local(Path::new(&source.path), Owner::of(pod).group),
            _ => Err(Error::Invalid(format!("PV {:?} is of a kind that this node does not have", volumes::volume_name(&claim)))),
        }
    }

    async fn files(&self, pod: &Pod, volume: &Volume, folder: &Path) -> Result<Vec<File>> {
        if let Some(source) = &volume.config_map {
            let data = self.config_map(&source.name, source.optional == Some(true)).await?;
            return choose(data, source.items.as_deref(), source.default_mode, source.optional == Some(true));
        }
        if let Some(source) = &volume.secret {
            let data = self.secret(source.secret_name.as_deref().unwrap_or_default(), source.optional == Some(true)).await?;
            return choose(data, source.items.as_deref(), source.default_mode, source.optional == Some(true));
        }
        if let Some(source) = &volume.downward_api {
            return Ok(self.downward(pod, source.items.as_deref(), source.default_mode));
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
            let content = match fs::read(folder.join(&token.path)).ok().filter(|it| is_fresh(it)) {
                Some(content) => content,
                None => self.token(pod, token.audience.as_deref(), seconds).await?,
            };
            let owner = Owner::of(pod);
            let is_private = owner.user.is_some() || owner.group.is_some();
            return Ok(vec![File { path: token.path.clone(), content, mode: if is_private { 0o600 } else { mode.unwrap_or(DEFAULT_MODE) }, is_users: true }]);
        }
        if let Some(source) = &source.config_map {
            let is_optional = source.optional == Some(true);
            return choose(self.config_map(&source.name, is_optional).await?, source.items.as_deref(), mode, is_optional);
        }
        if let Some(source) = &source.secret {
            let is_optional = source.optional == Some(true);
            return choose(self.secret(&source.name, is_optional).await?, source.items.as_deref(), mode, is_optional);
        }
        Ok(self.downward(pod, source.downward_api.as_ref().and_then(|it| it.items.as_deref()), mode))
    }

    fn downward(&self, pod: &Pod, items: Option<&[DownwardAPIVolumeFile]>, mode: Option<i32>) -> Vec<File> {
        let content = |item: &DownwardAPIVolumeFile| match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => field_value(pod, field),
            (_, Some(field)) => resource_value(pod, None, field, &self.machine),
            _ => String::new(),
        };
        let file = |it: &DownwardAPIVolumeFile| File::new(&it.path, content(it).into_bytes(), it.mode.or(mode));
        items.into_iter().flatten().map(file).collect()
    }
}

fn missing<T>(kind: &str, name: &str, is_optional: bool) -> Result<Option<T>> {
    if is_optional { Ok(None) } else { Err(Error::Invalid(format!("{kind} {name:?} not found"))) }
}

/// Whom the files of a volume belong to (`util.FsUserFrom`, `fsGroup`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Owner {
    /// The one user of all containers.
    user: Option<u32>,
    group: Option<u32>,
}

impl Owner {
    fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Self::default() };
        let security = spec.security_context.as_ref();
        let number = |it: Option<i64>| it.and_then(|it| u32::try_from(it).ok());
        let shared = security.and_then(|it| it.run_as_user);
        let users: BTreeSet<Option<i64>> = spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
            .map(|it| it.security_context.as_ref().and_then(|it| it.run_as_user).or(shared))
            .collect();
        let user = if users.len() == 1 { number(users.into_iter().next().flatten()) } else { None };
        Self { user, group: number(security.and_then(|it| it.fs_group)) }
    }
}

fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    if !path.exists() {
        match kind {
            "DirectoryOrCreate" => fs::create_dir_all(&path).map_err(failed(&path))?,
            "FileOrCreate" => fs::write(&path, "").map_err(failed(&path))?,
            // A path without a type that is not there becomes a directory, as containerd does it.
            "" => fs::create_dir_all(&path).map_err(failed(&path))?,
            _ => (),
        }
    }
    let found = fs::metadata(&path).map(|it| it.file_type()).ok();
    let is = |test: fn(&fs::FileType) -> bool| found.as_ref().is_some_and(test);
    let (fits, what) = match kind {
        "Directory" | "DirectoryOrCreate" => (is(fs::FileType::is_dir), "directory"),
        "File" | "FileOrCreate" => (is(fs::FileType::is_file), "file"),
        "Socket" => (is(FileTypeExt::is_socket), "socket"),
        "CharDevice" => (is(FileTypeExt::is_char_device), "character device"),
        "BlockDevice" => (is(FileTypeExt::is_block_device), "block device"),
        _ => (true, ""),
    };
    if fits { Ok(path) } else { Err(Error::Invalid(format!("hostPath type check failed: {} is not a {what}", source.path))) }
}

/// A directory that an administrator gave to the cluster; a group that wants it gets all in it.
fn local(path: &Path, group: Option<u32>) -> Result<PathBuf> {
    if !path.is_dir() {
        return Err(Error::Invalid(format!("path {:?} does not exist", path.display())));
    }
    take_over(path, group, 0o660).map_err(failed(path))?;
    Ok(path.to_owned())
}

/// A directory for everyone, on disk or in memory.
fn empty_dir(folder: &Path, source: &EmptyDirVolumeSource, group: Option<u32>) -> io::Result<()> {
    let in_memory = source.medium.as_deref() == Some("Memory");
    if in_memory && !is_mount_point(folder)? {
        let limit: Option<Quantity> = source.size_limit.as_ref().and_then(|it| it.0.parse().ok());
        let data = limit.filter(|it| !it.is_zero()).map(|it| format!("size={}", it.units()));
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), data.as_deref())?;
    }
    // A file system of its own has the sticky bit, as every new tmpfs.
    let mode = if in_memory { 0o1777 } else { 0o777 } | if group.is_some() { 0o2000 } else { 0 };
    fs::set_permissions(folder, fs::Permissions::from_mode(mode))?;
    chown(folder, None, group)
}

/// Mounts the layers of an image, the topmost first, to be read (KEP-4639). An overlay without an upper directory wants two at least.
pub fn mount_image(folder: &Path, layers: &[PathBuf]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let lower: Vec<String> = layers.iter().map(|it| it.as_path()).chain([folder]).map(|it| it.display().to_string()).collect();
    let data = format!("lowerdir={}", lower.join(":"));
    Ok(mount(Some("overlay"), folder, Some("overlay"), MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some(data.as_str()))?)
}

pub fn is_mount_point(folder: &Path) -> io::Result<bool> {
    Ok(fs::metadata(folder)?.dev() != fs::metadata(folder.join(".."))?.dev())
}

/// Removes the volumes below `root`, those in memory too.
pub fn remove(root: &Path) {
    release(root);
    let _ = fs::remove_dir_all(root);
}

/// Lets go of the volumes in memory.
pub fn release(root: &Path) {
    for folder in fs::read_dir(root).into_iter().flatten().flatten().map(|it| it.path()) {
        if is_mount_point(&folder).unwrap_or(false) {
            let _ = umount2(&folder, MntFlags::MNT_DETACH);
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct File {
    path: String,
    content: Vec<u8>,
    mode: i32,
    /// Belongs to the containers' user, where they have one.
    is_users: bool,
}

impl File {
    fn new(path: &str, content: Vec<u8>, mode: Option<i32>) -> Self {
        Self { path: path.to_owned(), content, mode: mode.unwrap_or(DEFAULT_MODE), is_users: false }
    }
}

fn choose(data: Option<Data>, items: Option<&[KeyToPath]>, mode: Option<i32>, is_optional: bool) -> Result<Vec<File>> {
    let data = data.unwrap_or_default();
    let Some(items) = items.filter(|it| !it.is_empty()) else {
        return Ok(data.into_iter().map(|(path, content)| File::new(&path, content, mode)).collect());
    };
    let mut files = Vec::new();
    for item in items {
        match data.get(&item.key) {
            Some(content) => files.push(File::new(&item.path, content.clone(), item.mode.or(mode))),
            None if is_optional => (),
            None => return Err(Error::Invalid(format!("references non-existent config key: {}", item.key))),
        }
    }
    Ok(files)
}

/// Whether a token may still be used for a while, by its own times.
fn is_fresh(token: &[u8]) -> bool {
    let claims = std::str::from_utf8(token).ok().and_then(|it| URL_SAFE_NO_PAD.decode(it.split('.').nth(1)?).ok());
    let claims: Value = claims.and_then(|it| serde_json::from_slice(&it).ok()).unwrap_or_default();
    let (from, to) = (claims.int_at(&["iat"]).unwrap_or(0), claims.int_at(&["exp"]).unwrap_or(0));
    (clock::now().as_second() - from) as f64 <= (to - from) as f64 * TOKEN_USED
}

/// Replaces a volume's files all at once: they stand in a directory of their own, to which one link is turned.
fn write_files(folder: &Path, files: &[File], owner: Owner) -> io::Result<()> {
    let current = folder.join(DATA);
    if current.exists() && is_same(&current, files) {
        return Ok(());
    }
    let name = format!("..{}.{}", clock::now().strftime("%Y_%m_%d_%H_%M_%S"), uuid::Uuid::new_v4().as_fields().0);
    let place = folder.join(&name);
    fs::create_dir(&place)?;
    files.iter().try_for_each(|it| write_file(&place, it, owner))?;
    take_over(&place, owner.group, 0o440)?;
    let old = fs::read_link(&current).ok();
    let _ = fs::remove_file(folder.join(NEW_DATA));
    symlink(&name, folder.join(NEW_DATA))?;
    fs::rename(folder.join(NEW_DATA), &current)?;
    link_names(folder, files)?;
    match old {
        Some(old) => fs::remove_dir_all(folder.join(old)),
        None => Ok(()),
    }
}

fn is_same(current: &Path, files: &[File]) -> bool {
    let all_there = files.iter().all(|it| fs::read(current.join(&it.path)).is_ok_and(|found| found == it.content));
    all_there && count(current) == files.len()
}

fn count(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|it| if it.path().is_dir() { count(&it.path()) } else { 1 }).sum()
}

fn write_file(place: &Path, file: &File, owner: Owner) -> io::Result<()> {
    let path = place.join(&file.path);
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(&path, &file.content)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(u32::try_from(file.mode).unwrap_or(0o644)))?;
    chown(&path, owner.user.filter(|_| file.is_users), None)
}

/// Gives a tree to a group, which may do `rights` with the files, and go through the directories (`SetVolumeOwnership`).
fn take_over(place: &Path, group: Option<u32>, rights: u32) -> io::Result<()> {
    let (Some(group), found) = (group, fs::symlink_metadata(place)?) else { return Ok(()) };
    if found.is_symlink() {
        return Ok(());
    }
    chown(place, None, Some(group))?;
    let more = if found.is_dir() { 0o2110 } else { 0 };
    fs::set_permissions(place, fs::Permissions::from_mode(found.mode() | rights | more))?;
    if found.is_dir() {
        for entry in fs::read_dir(place)? {
            take_over(&entry?.path(), Some(group), rights)?;
        }
    }
    Ok(())
}

/// The names that users see, each a link into the newest set.
fn link_names(folder: &Path, files: &[File]) -> io::Result<()> {
    let names: BTreeSet<&str> = files.iter().filter_map(|it| it.path.split('/').next()).collect();
    for name in &names {
        let link = folder.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !names.contains(name.as_str()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, content: &str) -> File {
        File::new(path, content.as_bytes().to_vec(), None)
    }

    #[test]
    fn files_are_replaced_all_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
        write_files(folder.path(), &[file("a", "1"), file("b/c", "2")], Owner::default()).expect("files");
        assert_eq!((read("a"), read("b/c")), (Some("1".to_owned()), Some("2".to_owned())));
        let first = fs::read_link(folder.path().join(DATA)).expect("a link");
        write_files(folder.path(), &[file("a", "1"), file("b/c", "2")], Owner::default()).expect("files");
        assert_eq!(fs::read_link(folder.path().join(DATA)).expect("a link"), first);
        write_files(folder.path(), &[file("a", "3")], Owner::default()).expect("files");
        assert_eq!((read("a"), read("b/c")), (Some("3".to_owned()), None));
        assert!(!folder.path().join(first).exists());
    }

    #[test]
    fn keys_that_are_missing_are_an_error_unless_optional() {
        let item = KeyToPath { key: "k".to_owned(), path: "p".to_owned(), mode: None };
        assert!(choose(Some(Data::new()), Some(std::slice::from_ref(&item)), None, false).is_err());
        assert_eq!(choose(Some(Data::new()), Some(&[item]), None, true).expect("files"), []);
    }

    #[test]
    fn tokens_are_fresh_for_most_of_their_life() {
        let now = clock::now().as_second();
        let token = |from: i64, to: i64| format!("h.{}.s", URL_SAFE_NO_PAD.encode(format!(r#"{{"iat":{from},"exp":{to}}}"#))).into_bytes();
        assert!(is_fresh(&token(now - 10, now + 90)));
        assert!(!is_fresh(&token(now - 90, now + 10)));
        assert!(!is_fresh(b"nothing"));
    }
}
