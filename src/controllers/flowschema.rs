//! Tells in the status of each FlowSchema whether the priority level that it names is there. It runs in the API servers, which do the sorting.
//! Follows apiserver `pkg/util/flowcontrol/apf_controller.go` (`presyncFlowSchemaStatus`).

use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    base::{Tasks, clock},
    client::{Informer, ObjectKey, Result, Watch, WorkQueue, writes},
};

const WORKERS: usize = 1;
const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";

/// Works under a client of the API server itself, until `tasks` stop.
pub fn start(client: &kube::Client, tasks: &Tasks) {
    let (queue, api) = (WorkQueue::new(), Api::<FlowSchema>::all(client.clone()));
    let schemas: Informer<FlowSchema> = Informer::start("flowschemas", api.clone(), Watch::default(), tasks);
    let levels: Informer<PriorityLevelConfiguration> = Informer::start("prioritylevels", Api::all(client.clone()), Watch::default(), tasks);
    tasks.spawn("flowschema-status", {
        let tasks = tasks.clone();
        async move {
            tokio::join!(schemas.synced(), levels.synced());
            let each = queue.clone();
            schemas.subscribe(move |change| each.add(ObjectKey::of(change.object().as_ref())));
            let (all, listed) = (queue.clone(), schemas.clone());
            levels.subscribe(move |_| listed.list().iter().for_each(|it| all.add(ObjectKey::of(it.as_ref()))));
            queue.run(&tasks, "flowschema-status", WORKERS, move |key: ObjectKey| {
                let (api, schema, levels) = (api.clone(), schemas.get(&key), levels.clone());
                async move {
                    match schema {
                        Some(schema) => tell(&api, &schema, &levels).await.map(|()| None),
                        None => Ok(None),
                    }
                }
            });
        }
    });
}

async fn tell(api: &Api<FlowSchema>, schema: &FlowSchema, levels: &Informer<PriorityLevelConfiguration>) -> Result<()> {
    let level = schema.spec.as_ref().map(|it| it.priority_level_configuration.name.as_str()).unwrap_or_default();
    let head = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = match levels.get(&ObjectKey::new("", level)) {
        Some(_) => ("False", "Found", format!("{head} and it exists")),
        None => ("True", "NotFound", format!("{head} but there is no such object")),
    };
    let present = schema.status.iter().flat_map(|it| it.conditions.iter().flatten()).find(|it| it.type_.as_deref() == Some("Dangling"));
    if present.is_some_and(|it| it.status.as_deref() == Some(status) && it.message.as_deref() == Some(&message)) {
        return Ok(());
    }
    let condition = json!({"type": "Dangling", "status": status, "reason": reason, "message": message, "lastTransitionTime": clock::now_rfc3339()});
    let patch = json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": schema.name_any()}, "status": {"conditions": [condition]}});
    let written = api.patch_status(&schema.name_any(), &PatchParams::apply(MANAGER).force(), &Patch::Apply(patch)).await;
    writes::unless_not_found(written).map(drop)
}
