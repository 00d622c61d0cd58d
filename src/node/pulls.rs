//! When an image is pulled, and what a container waits for meanwhile. Source: kubelet `pkg/kubelet/images/image_manager.go`, KEP-4639 for
//! images as volumes.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, PodSpec};
use kube::ResourceExt;
use parking_lot::Mutex;
use tokio::{sync::Mutex as AsyncMutex, time::Instant};

use super::{
    agent::{Agent, Delay, RESYNC, RETRY},
    images::{Image, Images, full_name},
    registry::{self, Credential, Registries},
    volumes,
};
use crate::{
    base::{Tasks, backoff::Backoff, tasks},
    client::EventType,
};

/// `MaxContainerBackOff` and its first step, for pulls as for restarts.
const BACKOFF_FIRST: Duration = Duration::from_secs(10);
const BACKOFF_MOST: Duration = Duration::from_secs(300);

/// `garbageCollectionPeriod` of images.
const PRUNE_EVERY: Duration = Duration::from_secs(300);

/// One start of one container: pod uid, container, attempt.
pub type Start = (String, String, u32);

/// What a container that is to start finds.
pub enum Found {
    Ready(Image),
    /// It was pulled for this start, within this time.
    Pulled(Image, Duration),
    /// The pull that begins now.
    Pulling,
    /// It goes on.
    Waiting,
    /// It failed just now: the error.
    Failed(String),
    /// It failed before and is tried again after this time.
    BackOff(String, Duration),
    /// It must not be pulled.
    Never,
}

enum State {
    Running,
    Done(Image, Duration),
    Failed { error: String, is_told: bool, again: Instant },
}

pub struct Pulls {
    pub images: Images,
    registries: Registries,
    states: Mutex<HashMap<Start, (State, Backoff)>>,
    /// An image is pulled by one at a time; the others then find it.
    busy: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
    tasks: Tasks,
}

impl Pulls {
    pub fn new(images: Images, mirror: Option<String>, tasks: &Tasks) -> Arc<Self> {
        let registries = Registries { mirror, tasks: tasks.clone() };
        Arc::new(Self { images, registries, states: Mutex::default(), busy: Mutex::default(), tasks: tasks.clone() })
    }

    /// The image for a container's start; a pull that begins calls `done` at its end.
    pub fn find(self: &Arc<Self>, start: &Start, image: &str, policy: &str, credentials: Vec<Credential>, done: impl FnOnce() + Send + 'static) -> Found {
        let present = if policy == "Always" { None } else { self.images.get(image) };
        match present {
            Some(image) => return Found::Ready(image),
            None if policy == "Never" => return Found::Never,
            None => (),
        }
        let mut states = self.states.lock();
        let (state, _) = states.entry(start.clone()).or_insert_with(|| {
            (State::Failed { error: String::new(), is_told: true, again: Instant::now() }, Backoff::new(BACKOFF_FIRST, BACKOFF_MOST))
        });
        match state {
            State::Running => Found::Waiting,
            State::Done(image, took) => {
                let found = Found::Pulled(image.clone(), *took);
                states.remove(start);
                found
            }
            State::Failed { error, is_told: told @ false, .. } => {
                *told = true;
                Found::Failed(error.clone())
            }
            State::Failed { again, .. } if Instant::now() >= *again => {
                *state = State::Running;
                drop(states);
                self.clone().begin(start.clone(), image.to_owned(), policy == "Always", credentials, done);
                Found::Pulling
            }
            State::Failed { error, again, .. } => Found::BackOff(error.clone(), again.saturating_duration_since(Instant::now())),
        }
    }

    fn begin(self: Arc<Self>, start: Start, image: String, is_always: bool, credentials: Vec<Credential>, done: impl FnOnce() + Send + 'static) {
        let group = self.tasks.clone();
        group.spawn("image-pull", async move {
            let began = Instant::now();
            let pulled = self.pull(&image, is_always, &credentials).await;
            if let Some((state, backoff)) = self.states.lock().get_mut(&start) {
                *state = match pulled {
                    Ok(image) => State::Done(image, began.elapsed()),
                    Err(error) => State::Failed { error: error.to_string(), is_told: false, again: Instant::now() + backoff.next_delay() },
                };
            }
            done();
        });
    }

    async fn pull(&self, name: &str, is_always: bool, credentials: &[Credential]) -> io::Result<Image> {
        let turn = self.busy.lock().entry(full_name(name)).or_default().clone();
        let _turn = turn.lock().await;
        if let (false, Some(image)) = (is_always, self.images.get(name)) {
            return Ok(image);
        }
        let scratch = self.images.scratch()?;
        let pulled = match self.registries.pull(name, credentials, &scratch, |it| self.images.has_layer(it)).await {
            Ok(()) => {
                let (images, folder) = (self.images.clone(), scratch.clone());
                tasks::blocking(move || images.import_folder(&folder)).await?.map(drop)
            }
            Err(error) => Err(error),
        };
        let _ = std::fs::remove_dir_all(&scratch);
        pulled?;
        self.images.get(name).ok_or_else(|| io::Error::other("the image is gone"))
    }

    /// Forgets a pod.
    pub fn forget(&self, uid: &str) {
        self.states.lock().retain(|(of, ..), _| of != uid);
    }
}

impl Agent {
    /// The image of a container.
    pub(super) async fn image(self: &Arc<Self>, pod: &Arc<Pod>, spec: &PodSpec, container: &ContainerSpec, attempt: u32) -> Result<Image, Delay> {
        let (name, policy) = (container.image.as_deref().unwrap_or_default(), container.image_pull_policy.as_deref());
        let start = (pod.metadata.uid.clone().unwrap_or_default(), container.name.clone(), attempt);
        self.find_image(pod, spec, start, name, policy.unwrap_or("IfNotPresent")).await
    }

    /// `volumes`, and those that are images and mounted in the container.
    pub(super) async fn image_volumes(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        spec: &PodSpec,
        container: &ContainerSpec,
        volumes: &HashMap<String, PathBuf>,
    ) -> Result<HashMap<String, PathBuf>, Delay> {
        let mut all = volumes.clone();
        let is_mounted = |name: &str| container.volume_mounts.iter().flatten().any(|it| it.name == name);
        for volume in spec.volumes.iter().flatten().filter(|it| is_mounted(&it.name)) {
            let Some(source) = &volume.image else { continue };
            let folder = self.volumes_of(pod).join(&volume.name);
            if !volumes::is_mount_point(&folder).unwrap_or(false) {
                let start = (pod.metadata.uid.clone().unwrap_or_default(), format!("volume/{}", volume.name), 0);
                let (name, policy) = (source.reference.as_deref().unwrap_or_default(), source.pull_policy.as_deref());
                let image = self.find_image(pod, spec, start, name, policy.unwrap_or("IfNotPresent")).await?;
                let failed = |why: io::Error| (RETRY, Some(("CreateContainerError".to_owned(), format!("image volume {:?}: {why}", volume.name))));
                volumes::mount_image(&folder, &image.layers).map_err(failed)?;
            }
            all.insert(volume.name.clone(), folder);
        }
        Ok(all)
    }

    async fn find_image(self: &Arc<Self>, pod: &Arc<Pod>, spec: &PodSpec, start: Start, name: &str, policy: &str) -> Result<Image, Delay> {
        let (agent, woken) = (Arc::downgrade(self), start.0.clone());
        let done = move || agent.upgrade().into_iter().for_each(|it| it.wake(&woken));
        let credentials = self.credentials(spec, &pod.namespace().unwrap_or_default()).await;
        let event = |kind, reason, message: String| self.recorder.event(&**pod, kind, reason, message);
        match self.pulls.find(&start, name, policy, credentials, done) {
            Found::Ready(image) => {
                event(EventType::Normal, "Pulled", format!("Container image {name:?} already present on machine"));
                Ok(image)
            }
            Found::Pulled(image, took) => {
                event(EventType::Normal, "Pulled", format!("Successfully pulled image {name:?} in {took:?}"));
                Ok(image)
            }
            Found::Pulling => {
                event(EventType::Normal, "Pulling", format!("Pulling image {name:?}"));
                Err((RESYNC, None))
            }
            Found::Waiting => Err((RESYNC, None)),
            Found::Failed(error) => {
                event(EventType::Warning, "Failed", format!("Failed to pull image {name:?}: {error}"));
                event(EventType::Warning, "Failed", "Error: ErrImagePull".to_owned());
                Err((RETRY, Some(("ErrImagePull".to_owned(), error))))
            }
            Found::BackOff(error, again) => {
                event(EventType::Normal, "BackOff", format!("Back-off pulling image {name:?}"));
                event(EventType::Warning, "Failed", "Error: ImagePullBackOff".to_owned());
                Err((again, Some(("ImagePullBackOff".to_owned(), format!("Back-off pulling image {name:?}: ErrImagePull: {error}")))))
            }
            Found::Never => {
                let message = format!("Container image {name:?} is not present with pull policy of Never");
                event(EventType::Warning, "ErrImageNeverPull", message.clone());
                Err((RETRY * 5, Some(("ErrImageNeverPull".to_owned(), message))))
            }
        }
    }

    /// Looks for ever after images that nobody needs (`pkg/kubelet/images/image_gc_manager.go`).
    pub(super) async fn prune_images(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(PRUNE_EVERY);
        loop {
            let is_short = tokio::select! {
                _ = ticks.tick() => false,
                () = self.images_to_prune.notified() => true,
            };
            let agent = self.clone();
            let _ = tasks::blocking(move || agent.prune_images_once(is_short)).await;
        }
    }

    fn prune_images_once(&self, is_short: bool) {
        let used: HashSet<PathBuf> = self.runtime.containers().into_iter().flat_map(|it| it.spec.layers).collect();
        // Image volumes are mounts of this machine.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let is_used = |it: &Path| used.contains(it) || it.file_name().is_some_and(|it| mounts.contains(&*it.to_string_lossy()));
        self.pulls.images.prune(is_used, !is_short);
    }

    /// What the pod's `imagePullSecrets` hold.
    async fn credentials(&self, spec: &PodSpec, namespace: &str) -> Vec<Credential> {
        let sources = self.sources(namespace);
        let mut all = Vec::new();
        for reference in spec.image_pull_secrets.iter().flatten() {
            let data = sources.secret(&reference.name, true).await.ok().flatten().unwrap_or_default();
            all.extend(data.get(".dockerconfigjson").map(|it| registry::credentials(it)).unwrap_or_default());
        }
        all
    }
}
