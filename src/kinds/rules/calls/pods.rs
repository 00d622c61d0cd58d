//! What the parts of a pod say about each other, beyond rules of a line. Source: `pkg/apis/core/validation/validation.go` (`ValidatePodSpec`).

use std::{collections::HashSet, rc::Rc};

use crate::{
    kinds::{
        check,
        rules::{
            Run, Site, Test,
            memory::Places,
            words::{int, push_if, text},
        },
    },
    meta::{FieldError, FieldErrors, Meta, Path, Value, names},
};

pub const CALLS: &[(&str, Run)] = &[
    ("volumenames", |site, _, errors| {
        let places = volumes(site, site.value);
        for (at, volume) in site.value.items_at(&["volumes"]).iter().enumerate() {
            let (name, path) = (volume.text("name"), site.path().child("volumes").index(at).child("name"));
            let is_taken = places.get(&[name.to_owned()][..]).is_some_and(|it| it.0 < at);
            push_if(is_taken, FieldError::duplicate(&path, name), errors);
        }
    }),
    ("hostports", host_ports),
    ("mounted", mounted),
    ("taken", taken),
    ("claimname", |site, _, errors| ephemeral_claims(site, errors)),
    ("selectslabels", |site, test, errors| check::selector_of_template(site.value, &site.say(test), errors)),
    // Upstream takes the name for a prefix.
    ("prefixname", |site, _, errors| check::all(names::dns1123_subdomain(&names::masked(text(site.value))), text(site.value), site.path(), errors)),
];

fn has(object: &Value, field: &str) -> bool {
    object.get(field).is_some_and(|it| !it.is_null())
}

/// Where the volumes of a pod that are right stand, by name.
fn volumes(site: &Site<'_>, spec: &Value) -> Rc<Places> {
    let is_right = |it: &Value| super::super::is_valid(it, "io.k8s.api.core.v1.Volume");
    site.memory.places(spec.items_at(&["volumes"]), "volumes that are right", |it| is_right(it).then(|| vec![it.text("name").to_owned()]))
}

/// Ports of the host are taken once. The value is a list of containers, or one that stands for itself alone: so upstream checks init containers, as if each were the first.
fn host_ports(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (containers, path) = match site.value {
        Value::Array(all) => (all.as_slice(), site.path().clone()),
        one => (std::slice::from_ref(one), site.path().up()),
    };
    let mut seen = HashSet::new();
    for (at, container) in containers.iter().enumerate() {
        for (port_at, port) in container.items_at(&["ports"]).iter().enumerate().filter(|it| int(&it.1["hostPort"]) != 0) {
            let key = format!("{}/{}/{}", port.text("protocol"), port.text("hostIP"), int(&port["hostPort"]));
            let path = path.index(at).child("ports").index(port_at).child("hostPort");
            push_if(!seen.insert(key.clone()), FieldError::duplicate(&path, key), errors);
        }
    }
}

/// What a container mounts are volumes of its pod. `site` is the container.
fn mounted(site: &Site<'_>, _: &Test, errors: &mut FieldErrors) {
    let (container, path, spec) = (site.value, site.path(), site.owner.parent());
    let places = volumes(site, spec);
    let find = |name: &str| places.get(&[name.to_owned()][..]).map(|it| &spec["volumes"][it.0]);
    // The claims of a StatefulSet are volumes of its pods too (`volumesToAddForTemplates`).
    let claims = site.memory.places(site.root.items_at(&["spec", "volumeClaimTemplates"]), "names of claims", |it| Some(vec![it.name().to_owned()]));
    let is_claimed = |name: &str| claims.contains_key(&[name.to_owned()][..]);
    for (at, mount) in container.items_at(&["volumeMounts"]).iter().enumerate() {
        let name = mount.text("name");
        push_if(find(name).is_none() && !is_claimed(name), FieldError::not_found(&path.child("volumeMounts").index(at).child("name"), name), errors);
    }
    for (at, device) in container.items_at(&["volumeDevices"]).iter().enumerate() {
        let (path, name) = (path.child("volumeDevices").index(at).child("name"), device.text("name"));
        match find(name) {
            _ if is_claimed(name) => (),
            None => errors.push(FieldError::not_found(&path, name)),
            Some(volume) if !has(volume, "persistentVolumeClaim") && !has(volume, "ephemeral") => {
                errors.push(FieldError::invalid(&path, name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"));
            }
            Some(_) => (),
        }
    }
}

/// A file's name is there once in its projected volume, which reports it with the words of the rule.
fn taken(site: &Site<'_>, test: &Test, errors: &mut FieldErrors) {
    let Some(volume) = std::iter::successors(Some(&site.owner), |it| it.above).find(|it| it.value.get("sources").is_some()) else { return };
    let is_taken = !text(site.value).is_empty() && !site.memory.is_first(volume.value, text(site.value));
    push_if(is_taken, FieldError::invalid(volume.path, site.say(test).as_ref(), "conflicting duplicate paths"), errors);
}

/// The names of the claims that ephemeral volumes make. `site` is the Pod.
fn ephemeral_claims(site: &Site<'_>, errors: &mut FieldErrors) {
    let (volumes, path) = (site.value.items_at(&["spec", "volumes"]), Path::new("spec").child("volumes"));
    let claim = |volume: &Value| format!("{}-{}", site.value.name(), volume.text("name"));
    // Of several sources only the first counts.
    let has = |volume: &Value| volume.get("ephemeral").is_some_and(|it| !it.is_null()) && volume.as_object().is_some_and(|it| it.len() == 2);
    let made: HashSet<String> = volumes.iter().filter(|it| has(it)).map(claim).collect();
    for (at, volume) in volumes.iter().enumerate() {
        if has(volume) && !volume.text("name").is_empty() && !site.value.name().is_empty() {
            let problems = names::dns1123_subdomain(&claim(volume)).into_iter().map(|it| format!("PVC name {:?}: {it}", claim(volume)).into()).collect();
            check::all(problems, volume.text("name"), &path.index(at).child("name"), errors);
        }
        let used = volume.text_at(&["persistentVolumeClaim", "claimName"]);
        let place = path.index(at).child("persistentVolumeClaim").child("claimName");
        push_if(made.contains(used), FieldError::invalid(&place, used, "must not reference a PVC that gets created for an ephemeral volume"), errors);
    }
}
