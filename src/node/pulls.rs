//! When an image is pulled, and what a container waits for meanwhile. Source: kubelet `pkg/kubelet/images/image_manager.go`.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Mutex as AsyncMutex, time::Instant};

use super::{
    images::{Image, Images, full_name},
    registry::{Credential, Registries},
};
use crate::base::{Tasks, backoff::Backoff, tasks};

/// `MaxContainerBackOff` and its first step, for pulls as for restarts.
const BACKOFF_FIRST: Duration = Duration::from_secs(10);
const BACKOFF_MOST: Duration = Duration::from_secs(300);

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

    fn states(&self) -> MutexGuard<'_, HashMap<Start, (State, Backoff)>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image for a container's start; a pull that begins calls `done` at its end.
    pub fn find(self: &Arc<Self>, start: &Start, image: &str, policy: &str, credentials: Vec<Credential>, done: impl FnOnce() + Send + 'static) -> Found {
        let present = if policy == "Always" { None } else { self.images.get(image) };
        match present {
            Some(image) => return Found::Ready(image),
            None if policy == "Never" => return Found::Never,
            None => (),
        }
        let mut states = self.states();
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
            if let Some((state, backoff)) = self.states().get_mut(&start) {
                *state = match pulled {
                    Ok(image) => State::Done(image, began.elapsed()),
                    Err(error) => State::Failed { error: error.to_string(), is_told: false, again: Instant::now() + backoff.next_delay() },
                };
            }
            done();
        });
    }

    async fn pull(&self, name: &str, is_always: bool, credentials: &[Credential]) -> io::Result<Image> {
        let turn = self.busy.lock().unwrap_or_else(PoisonError::into_inner).entry(full_name(name)).or_default().clone();
        let _turn = turn.lock().await;
        if let (false, Some(image)) = (is_always, self.images.get(name)) {
            return Ok(image);
        }
        let scratch = self.images.scratch()?;
        let pulled = match self.registries.pull(name, credentials, &scratch).await {
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
        self.states().retain(|(of, ..), _| of != uid);
    }
}
