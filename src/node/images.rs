//! Images: a store in the data directory, fed by archives and by the built-in demo image. Layers are unpacked once, content-addressed, and
//! used as the lower directories of overlays. Formats: OCI image layout 1.1, `docker save`.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::CString,
    fs,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::meta::{Meta, Value};

/// The image that needs no network: this program, serving its host name.
pub const DEMO: &str = "howdah/hello:1";
const MANIFEST_DEPTH: usize = 4;
/// A layer without an image that is younger may belong to one that is just being imported.
const YOUNG: Duration = Duration::from_secs(600);

/// What is needed to run an image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Image {
    pub id: String,
    /// Directories of the unpacked layers, the topmost first.
    pub layers: Vec<PathBuf>,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub environment: Vec<String>,
    pub user: String,
    pub directory: String,
    pub stop_signal: String,
}

#[derive(Clone, Debug)]
pub struct Images {
    root: PathBuf,
}

impl Images {
    pub fn open(root: &Path) -> io::Result<Self> {
        for folder in ["layers", "names", "blobs"] {
            fs::create_dir_all(root.join(folder))?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// The image of a name, as users write it; the demo image is made when it is first asked for.
    pub fn get(&self, name: &str) -> Option<Image> {
        let found = self.read(&self.name_file(name));
        if found.is_none() && full_name(name) == full_name(DEMO) {
            return self.make_demo().inspect_err(|error| tracing::warn!(%error, "the demo image could not be made")).ok();
        }
        found
    }

    /// Names and images, in order.
    pub fn list(&self) -> BTreeMap<String, Image> {
        let entries = fs::read_dir(self.root.join("names")).into_iter().flatten().flatten();
        let read = |it: fs::DirEntry| Some((it.file_name().to_string_lossy().replace('+', "/"), self.read(&it.path())?));
        entries.filter_map(read).collect()
    }

    fn name_file(&self, name: &str) -> PathBuf {
        self.root.join("names").join(full_name(name).replace('/', "+"))
    }

    /// Layers are written down by their names alone, so that the data directory may move.
    fn read(&self, path: &Path) -> Option<Image> {
        let mut image: Image = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        image.layers.iter_mut().for_each(|it| *it = self.root.join("layers").join(&*it));
        Some(image)
    }

    fn tag(&self, name: &str, image: &Image) -> io::Result<()> {
        let path = self.name_file(name);
        let mut image = image.clone();
        image.layers = image.layers.iter().filter_map(|it| it.file_name().map(PathBuf::from)).collect();
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec(&image)?)?;
        fs::rename(new, path)
    }

    /// Imports an archive (OCI layout or `docker save`) and returns the names in it.
    pub fn import(&self, archive: &Path) -> io::Result<Vec<String>> {
        let scratch = self.scratch()?;
        let imported = unpack(&scratch, fs::File::open(archive)?, Whiteouts::Keep).and_then(|()| self.import_folder(&scratch));
        fs::remove_dir_all(&scratch)?;
        imported
    }

    /// A new folder for blobs on their way in.
    pub fn scratch(&self) -> io::Result<PathBuf> {
        let folder = self.root.join("blobs").join(uuid::Uuid::new_v4().simple().to_string());
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Imports an unpacked archive.
    pub fn import_folder(&self, folder: &Path) -> io::Result<Vec<String>> {
        let is_docker = folder.join("manifest.json").exists();
        let images = if is_docker { docker_images(folder)? } else { oci_images(folder, "index.json", None, MANIFEST_DEPTH)? };
        let mut names = Vec::new();
        for (name, config, layers) in images {
            let image = self.add(folder, &config, &layers)?;
            if let Some(name) = name {
                self.tag(&name, &image)?;
                names.push(name);
            }
        }
        match names.is_empty() {
            true => Err(invalid("the archive names no image")),
            false => Ok(names),
        }
    }

    /// Unpacks the layers that are not there yet.
    fn add(&self, folder: &Path, config: &str, layers: &[String]) -> io::Result<Image> {
        let bytes = fs::read(safe(folder, Path::new(config))?)?;
        let config: Value = serde_json::from_slice(&bytes)?;
        let mut folders = Vec::new();
        for (at, layer) in layers.iter().enumerate() {
            let diff = config.items_at(&["rootfs", "diff_ids"]).get(at).and_then(Value::as_str).unwrap_or_default();
            folders.push(self.add_layer(&safe(folder, Path::new(layer))?, diff)?);
        }
        folders.reverse();
        let texts = |field: &str| config.texts_at(&["config", field]).map(str::to_owned).collect();
        let text = |field: &str| config.text_at(&["config", field]).to_owned();
        Ok(Image {
            id: format!("sha256:{}", hex(&Sha256::digest(&bytes))),
            layers: folders,
            entrypoint: texts("Entrypoint"),
            command: texts("Cmd"),
            environment: texts("Env"),
            user: text("User"),
            directory: text("WorkingDir"),
            stop_signal: text("StopSignal"),
        })
    }

    /// Whether a layer is unpacked, by the digest of its content.
    pub fn has_layer(&self, diff: &str) -> bool {
        layer_name(diff).is_some_and(|it| self.root.join("layers").join(it).exists())
    }

    fn add_layer(&self, blob: &Path, diff: &str) -> io::Result<PathBuf> {
        let wanted = layer_name(diff).ok_or_else(|| invalid("a layer without a digest"))?;
        let place = self.root.join("layers").join(wanted);
        if touch(&place).is_ok() {
            return Ok(place);
        }
        let scratch = self.root.join("layers").join(format!("{wanted}.{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir_all(&scratch)?;
        fs::set_permissions(&scratch, fs::Permissions::from_mode(0o755))?;
        let mut reader = Hashing { inner: decompress(fs::File::open(blob)?)?, hash: Sha256::new() };
        unpack(&scratch, &mut reader, Whiteouts::Overlay)?;
        io::copy(&mut reader, &mut io::sink())?;
        let found = hex(&reader.hash.finalize());
        if found != wanted {
            fs::remove_dir_all(&scratch)?;
            return Err(invalid(&format!("a layer is {found}, not {wanted}")));
        }
        touch(&scratch)?;
        fs::rename(&scratch, &place).or_else(|error| if place.exists() { Ok(()) } else { Err(error) })?;
        Ok(place)
    }

    /// Removes layers that no image has and nobody uses; unless it `keeps_names`, images first of which nobody uses a layer.
    pub fn prune(&self, is_used: impl Fn(&Path) -> bool, keeps_names: bool) {
        if !keeps_names {
            let unused = self.list().into_iter().filter(|(_, image)| !image.layers.iter().any(|it| is_used(it)));
            unused.for_each(|(name, _)| drop(fs::remove_file(self.name_file(&name))));
        }
        let named: HashSet<PathBuf> = self.list().into_values().flat_map(|it| it.layers).collect();
        let is_old = |it: &Path| fs::metadata(it).and_then(|it| it.modified()).is_ok_and(|it| it.elapsed().is_ok_and(|it| it > YOUNG));
        let layers = fs::read_dir(self.root.join("layers")).into_iter().flatten().flatten().map(|it| it.path());
        for layer in layers.filter(|it| !named.contains(it) && is_old(it) && !is_used(it)) {
            tracing::debug!(layer = %layer.display(), "a layer that nobody has is removed");
            let _ = fs::remove_dir_all(layer);
        }
    }

    /// This program and the libraries that it needs, as one layer.
    fn make_demo(&self) -> io::Result<Image> {
        let program = std::env::current_exe()?;
        let size = fs::metadata(&program)?;
        let changed = size.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let id = hex(&Sha256::digest(format!("{} {changed}", program.display())));
        let place = self.root.join("layers").join(&id);
        if !place.exists() {
            let scratch = self.root.join("layers").join(format!("{id}.{}", uuid::Uuid::new_v4().simple()));
            fs::create_dir_all(scratch.join("tmp"))?;
            fs::create_dir_all(scratch.join("etc"))?;
            fs::write(scratch.join("etc/passwd"), "root:x:0:0:root:/:/howdah\nnobody:x:65534:65534:nobody:/:/howdah\n")?;
            fs::copy(&program, scratch.join("howdah"))?;
            for library in libraries(&program)? {
                let target = scratch.join(library.strip_prefix("/").unwrap_or(&library));
                target.parent().map_or(Ok(()), fs::create_dir_all)?;
                fs::copy(&library, target)?;
            }
            touch(&scratch)?;
            // Another may have been quicker.
            fs::rename(&scratch, &place).or_else(|error| if place.exists() { fs::remove_dir_all(&scratch) } else { Err(error) })?;
        }
        let image = Image { id: format!("sha256:{id}"), layers: vec![place], entrypoint: vec!["/howdah".to_owned(), "hello".to_owned()], directory: "/".to_owned(), ..Image::default() };
        self.tag(DEMO, &image)?;
        Ok(image)
    }
}

/// Says that a layer is wanted now.
fn touch(layer: &Path) -> io::Result<()> {
    fs::File::open(layer)?.set_modified(SystemTime::now())
}

/// The folder of a layer, by the digest of its content; a digest is hexadecimal, so that it leads nowhere else.
fn layer_name(diff: &str) -> Option<&str> {
    diff.strip_prefix("sha256:").filter(|it| it.len() == 64 && it.bytes().all(|it| it.is_ascii_hexdigit()))
}

/// The shared libraries of this program, and the loader, as the loader itself lists them (`ldd` asks it in the same way).
fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    let output = Command::new(program).arg("--version").env("LD_TRACE_LOADED_OBJECTS", "1").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let path = |line: &str| line.split_whitespace().find(|it| it.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path).collect())
}

/// `web` is `docker.io/library/web:latest`.
pub fn full_name(name: &str) -> String {
    let (path, digest) = name.split_once('@').map_or((name, None), |(path, digest)| (path, Some(digest)));
    let first = path.split('/').next().unwrap_or_default();
    let has_registry = path.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let path = match (has_registry, path.contains('/')) {
        (true, _) => path.to_owned(),
        (false, true) => format!("docker.io/{path}"),
        (false, false) => format!("docker.io/library/{path}"),
    };
    let has_tag = path.rsplit('/').next().is_some_and(|it| it.contains(':'));
    match digest {
        Some(digest) => format!("{path}@{digest}"),
        None if has_tag => path,
        None => format!("{path}:latest"),
    }
}

type Found = (Option<String>, String, Vec<String>);

fn docker_images(folder: &Path) -> io::Result<Vec<Found>> {
    let manifest: Value = serde_json::from_slice(&fs::read(folder.join("manifest.json"))?)?;
    let texts = |value: &Value, field: &str| value.texts_at(&[field]).map(str::to_owned).collect::<Vec<_>>();
    let mut found = Vec::new();
    for image in manifest.as_array().into_iter().flatten() {
        let (config, layers) = (image.text("Config").to_owned(), texts(image, "Layers"));
        found.extend(texts(image, "RepoTags").into_iter().map(|it| (Some(it), config.clone(), layers.clone())));
    }
    Ok(found)
}

/// The images of an index, or of an index in it; of several platforms the one of this machine.
fn oci_images(folder: &Path, file: &str, name: Option<String>, depth: usize) -> io::Result<Vec<Found>> {
    if depth == 0 {
        return Err(invalid("indexes nested too deeply"));
    }
    let document: Value = serde_json::from_slice(&fs::read(safe(folder, Path::new(file))?)?)?;
    let blob = |descriptor: &Value| descriptor.text("digest").replacen(':', "/", 1);
    let path = |descriptor: &Value| format!("blobs/{}", blob(descriptor));
    if let Some(config) = document.get("config") {
        let layers = document.items_at(&["layers"]).iter().map(path).collect();
        return Ok(vec![(name, path(config), layers)]);
    }
    let mut found = Vec::new();
    for manifest in document.items_at(&["manifests"]) {
        let architecture = manifest.text_at(&["platform", "architecture"]);
        if !architecture.is_empty() && architecture != crate::api::http::arch() {
            continue;
        }
        let annotation = |key: &str| Some(manifest.text_at(&["annotations", key])).filter(|it| !it.is_empty()).map(str::to_owned);
        let own = annotation("io.containerd.image.name").or_else(|| annotation("org.opencontainers.image.ref.name")).or_else(|| name.clone());
        found.extend(oci_images(folder, &path(manifest), own, depth - 1)?);
    }
    Ok(found)
}

fn decompress(mut file: fs::File) -> io::Result<Box<dyn Read>> {
    let mut magic = [0u8; 4];
    let count = file.read(&mut magic)?;
    io::Seek::rewind(&mut file)?;
    Ok(match &magic[..count] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::GzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(file)?),
        _ => Box::new(file),
    })
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

#[derive(Clone, Copy, PartialEq)]
enum Whiteouts {
    Keep,
    /// As overlayfs wants them: a device 0/0, an attribute of the directory.
    Overlay,
}

/// A path of an archive below `root`; refuses what leads out, by `..` or through a link.
fn safe(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut whole = root.to_owned();
    for part in path.components() {
        match part {
            Component::Normal(part) => {
                if fs::symlink_metadata(&whole).is_ok_and(|it| it.file_type().is_symlink()) {
                    return Err(invalid("a path leads through a link"));
                }
                whole.push(part);
            }
            Component::CurDir | Component::RootDir => (),
            _ => return Err(invalid("a path leads out of the archive")),
        }
    }
    Ok(whole)
}

fn unpack(root: &Path, reader: impl Read, whiteouts: Whiteouts) -> io::Result<()> {
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(whiteouts == Whiteouts::Overlay);
    archive.set_unpack_xattrs(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let place = safe(root, &entry.path()?.into_owned())?;
        let name = place.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        match name.strip_prefix(".wh.").filter(|_| whiteouts == Whiteouts::Overlay) {
            Some(".wh..opq") => opaque(&place)?,
            Some(gone) => whiteout(&place.with_file_name(gone))?,
            None if entry.header().entry_type().is_hard_link() => {
                let target = entry.link_name()?.ok_or_else(|| invalid("a link to nothing"))?.into_owned();
                let _ = fs::remove_file(&place);
                fs::hard_link(safe(root, &target)?, &place)?;
            }
            None => _ = entry.unpack(&place)?,
        }
    }
    Ok(())
}

fn whiteout(place: &Path) -> io::Result<()> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    Ok(mknod(place, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))?)
}

/// Marks the directory of `place` as hiding what lower layers have there.
fn opaque(place: &Path) -> io::Result<()> {
    let folder = place.parent().unwrap_or(place);
    let path = CString::new(folder.as_os_str().as_encoded_bytes())?;
    // SAFETY: the path and the name are live and end with zero; the value is one byte.
    let done = unsafe { libc::setxattr(path.as_ptr(), c"trusted.overlay.opaque".as_ptr(), b"y".as_ptr().cast(), 1, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_by_docker() {
        let cases = [
            ("web", "docker.io/library/web:latest"),
            ("howdah/hello:1", "docker.io/howdah/hello:1"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("example.com/a/b:2", "example.com/a/b:2"),
            ("web@sha256:00", "docker.io/library/web@sha256:00"),
        ];
        for (name, full) in cases {
            assert_eq!(full_name(name), full);
        }
    }

    #[test]
    fn archives_do_not_lead_out_of_their_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(safe(folder.path(), Path::new("../x")).is_err());
        std::os::unix::fs::symlink("/etc", folder.path().join("link")).expect("a link");
        assert!(safe(folder.path(), Path::new("link/passwd")).is_err());
        assert_eq!(safe(folder.path(), Path::new("/a/./b")).expect("a path"), folder.path().join("a/b"));
    }
}
