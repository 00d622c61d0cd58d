//! Prefers nodes that have the pod's large images already.

use crate::scheduler::{
    cluster::{Cluster, NodeInfo, PodInfo},
    framework::{Judge, MOST},
};

/// `minThreshold` and `maxContainerThreshold`: below the one an image does not matter, above the other it matters no more.
const LEAST_BYTES: i64 = 23 << 20;
const MOST_BYTES_A_CONTAINER: i64 = 1000 << 20;

pub fn prepare<'a>(pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Judge<'a>> {
    let spec = pod.pod.spec.as_ref()?;
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let images: Vec<String> = containers.filter_map(|it| it.image.as_deref()).map(with_tag).collect();
    let is_known = images.iter().any(|it| cluster.image_nodes.contains_key(it));
    let most = MOST_BYTES_A_CONTAINER * images.len() as i64;
    let score = move |node: &&NodeInfo| MOST * (bytes(&images, node, cluster).clamp(LEAST_BYTES, most) - LEAST_BYTES) / (most - LEAST_BYTES);
    is_known.then(|| Judge::scores(move |nodes| Some(nodes.iter().map(&score).collect())))
}

/// `normalizedImageName`.
fn with_tag(image: &str) -> String {
    let has_tag = image.rfind(':') > image.rfind('/');
    if has_tag || image.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

/// The bytes present, an image that few nodes have counting for less, lest all pods crowd there.
fn bytes(images: &[String], node: &NodeInfo, cluster: &Cluster) -> i64 {
    let spread = |name: &String| cluster.image_nodes.get(name).copied().unwrap_or(0) as f64 / cluster.nodes.len() as f64;
    images.iter().filter_map(|it| Some((node.images.get(it)?, spread(it)))).map(|(size, spread)| (*size as f64 * spread) as i64).sum()
}
