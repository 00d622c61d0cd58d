//! What a machine needs to run pods, and what does not work where it is missing.

use std::{fs, io, path::Path};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::runtime::cgroup;
use crate::base::tasks;

/// What is missing here, each with what does not work for it. `folder` is where containers will have their files.
pub fn missing(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let place = folder.join("probe");
    let tried = place.clone();
    if let Err(why) = tasks::on_own_thread(move || try_overlay(&tried)).and_then(|it| it) {
        all.push(format!("no container can start, for want of overlayfs in {} ({why})", folder.display()));
    }
    let _ = fs::remove_dir_all(place);
    let controllers = cgroup::missing_controllers();
    if !controllers.is_empty() {
        let what = if cgroup::is_v2() { "their limits do not hold" } else { "no container can start" };
        all.push(format!("{what}, for want of the control groups {}", controllers.join(", ")));
    }
    if let Err(why) = fs::OpenOptions::new().write(true).open("/proc/sys/net/ipv4/ip_forward") {
        all.push(format!("pods reach nobody but this machine, for want of a writable net.ipv4.ip_forward ({why})"));
    }
    all
}

/// Mounts an overlay for a moment, in a namespace that ends with the thread.
fn try_overlay(place: &Path) -> io::Result<()> {
    let [lower, upper, work, root] = ["lower", "upper", "work", "root"].map(|it| place.join(it));
    [&lower, &upper, &work, &root].iter().try_for_each(fs::create_dir_all)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let data = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    Ok(mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(data.as_str()))?)
}
