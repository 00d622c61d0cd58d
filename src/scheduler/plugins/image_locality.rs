//! Prefers nodes that have the pod's large images already.

use crate::scheduler::{
    cluster::{Cluster, NodeInfo, PodInfo},
    framework::{Judge, MOST},
};

/// `minThreshold` and `maxContainerThreshold`: below the one an image does not matter, above the other it matters no more.
const LEAST_BYTES: i64 = 23 << 20;
const MOST_BYTES_A_CONTAINER: i64 = 1000 << 20;

pub fn prepare<'a>(pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Judge + 'a>> {
    let spec = pod.pod.spec.as_ref()?;
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let images: Vec<String> = containers.filter_map(|it| it.image.as_deref()).map(with_tag).collect();
    let is_known = images.iter().any(|it| cluster.image_nodes.contains_key(it));
    is_known.then(|| Box::new(Images { images, cluster }) as Box<dyn Judge>)
}

/// `normalizedImageName`.
fn with_tag(image: &str) -> String {
    let has_tag = image.rfind(':') > image.rfind('/');
    if has_tag || image.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

struct Images<'a> {
    images: Vec<String>,
    cluster: &'a Cluster,
}

impl Images<'_> {
    /// The bytes present, an image that few nodes have counting for less, lest all pods crowd there.
    fn bytes(&self, node: &NodeInfo) -> i64 {
        let nodes = self.cluster.nodes.len() as f64;
        let spread = |name: &String| self.cluster.image_nodes.get(name).copied().unwrap_or(0) as f64 / nodes;
        self.images.iter().filter_map(|it| Some((node.images.get(it)?, spread(it)))).map(|(size, spread)| (*size as f64 * spread) as i64).sum()
    }
}

impl Judge for Images<'_> {
    fn scores(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let most = MOST_BYTES_A_CONTAINER * self.images.len() as i64;
        let score = |node: &&NodeInfo| MOST * (self.bytes(node).clamp(LEAST_BYTES, most) - LEAST_BYTES) / (most - LEAST_BYTES);
        Some(nodes.iter().map(score).collect())
    }
}
