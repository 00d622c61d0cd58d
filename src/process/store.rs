//! What people do with a store by hand: a backup while the cluster serves, a restore, and a look at what takes the room.

use std::{collections::BTreeMap, fs, io::BufReader, os::unix::fs::OpenOptionsExt, path::Path, sync::Arc};

use futures::{AsyncBufRead, AsyncBufReadExt, TryStreamExt};

use super::{
    Error, Result, STOP_WITHIN,
    apiserver::{StoreKind, open_engine},
    kubeconfig::Kubeconfig,
};
use crate::{
    api::{self, http::BACKUP_PATH, identity::{MASTERS, User}},
    base::Tasks,
    kinds::table,
    store::{Key, Rejected, Revision, Store, Transaction, Write, archive::Archive},
};

/// Objects deleted in one step.
const DELETED_TOGETHER: usize = 256;

/// Writes every object of a serving cluster to `file`, readable only by its owner. Returns how many there are, and their revision.
pub async fn backup(kubeconfig: &Path, file: &Path) -> Result<(usize, Revision)> {
    let failed = |why: &dyn std::fmt::Display| Error::new("the backup", why);
    let tasks = Tasks::new();
    let clients = Kubeconfig::read(kubeconfig)?.connect(kubeconfig, &[], &tasks)?;
    let client = clients.of(&User::system("system:admin", &[MASTERS]));
    let request = http::Request::get(BACKUP_PATH).body(Vec::new()).map_err(|why| failed(&why))?;
    let lines = client.request_stream(request).await.map_err(|why| failed(&why))?;
    let part = file.with_added_extension("part");
    save(lines, &part).await.map_err(|why| Error::new(&part.display().to_string(), why))?;
    let archive = read(&part)?;
    fs::rename(&part, file).map_err(|why| Error::new(&file.display().to_string(), why))?;
    Ok((archive.objects.len(), archive.revision))
}

async fn save(lines: impl AsyncBufRead, part: &Path) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(part)?;
    let mut lines = std::pin::pin!(lines.lines());
    while let Some(line) = lines.try_next().await? {
        writeln!(file, "{line}")?;
    }
    file.sync_all()
}

fn read(file: &Path) -> Result<Archive> {
    let failed = |why: &dyn std::fmt::Display| Error::new(&file.display().to_string(), why);
    let file = fs::File::open(file).map_err(|why| failed(&why))?;
    Archive::read(BufReader::new(file)).map_err(|why| failed(&why))
}

/// Makes the store of a cluster that does not run what a backup is. Returns how many objects there are, and the new revision.
pub async fn restore(file: &Path, store: &StoreKind, data_dir: &Path) -> Result<(usize, Revision)> {
    let archive = read(file)?;
    fs::create_dir_all(data_dir).map_err(|why| Error::new(&data_dir.display().to_string(), why))?;
    let tasks = Tasks::new();
    let engine = open_engine(store, data_dir, &tasks).await?;
    let revision = archive.restore(&*engine).await.map_err(|why| Error::new("the restore", why))?;
    tasks.cancel();
    Ok((archive.objects.len(), revision))
}

/// What the objects of a resource take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub objects: usize,
    pub bytes: usize,
}

/// The sizes of all resources.
pub async fn sizes(store: &StoreKind, data_dir: &Path) -> Result<BTreeMap<Arc<str>, Size>> {
    let (store, tasks) = open(store, data_dir).await?;
    let snapshot = store.snapshot();
    let size = |it: &Arc<str>| Size { objects: snapshot.count(it), bytes: snapshot.list(it, None, None).map(|it| it.json.len()).sum() };
    let sizes = snapshot.resources().into_iter().map(|it| (it.clone(), size(&it))).collect();
    tasks.stop(STOP_WITHIN).await;
    Ok(sizes)
}

/// Deletes objects without asking anybody: no finalizer, no admission. Without a name all of the resource go, in `namespace` if one is
/// given. Returns how many went.
pub async fn delete(store: &StoreKind, data_dir: &Path, resource: &str, namespace: Option<&str>, name: Option<&str>) -> Result<usize> {
    let (store, tasks) = open(store, data_dir).await?;
    let snapshot = store.snapshot();
    let chosen = snapshot.list(resource, namespace, None).filter(|it| name.is_none_or(|name| *it.key.name == *name));
    let keys: Vec<&Key> = chosen.map(|it| &it.key).collect();
    let mut count = 0;
    for keys in keys.chunks(DELETED_TOGETHER) {
        count += delete_together(&store, keys).await?;
    }
    tasks.stop(STOP_WITHIN).await;
    Ok(count)
}

/// Deletes objects in one transaction, as they are by then. Returns how many there were.
async fn delete_together(store: &Store, keys: &[&Key]) -> Result<usize> {
    loop {
        let snapshot = store.snapshot();
        let writes: Vec<Write> = keys.iter().filter_map(|it| snapshot.get(it)).map(|it| it.removal()).collect();
        let count = writes.len();
        match store.submit(Transaction { writes }).await {
            // A server that runs was quicker with one of them.
            Err(Rejected::Changed { .. }) => (),
            answer => return answer.map(|_| count).map_err(|why| Error::new("the store", why)),
        }
    }
}

async fn open(store: &StoreKind, data_dir: &Path) -> Result<(Store, Tasks)> {
    let tasks = Tasks::new();
    let engine = open_engine(store, data_dir, &tasks).await?;
    let extract = api::extract(Arc::new(table::registry()));
    let store = Store::open(engine, extract, &tasks).await.map_err(|why| Error::new("the store", why))?;
    Ok((store, tasks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Change, Draft, Expect, Header};

    #[tokio::test]
    async fn all_of_a_resource_go_in_a_few_steps() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let object = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
            let change = Change::Put(Draft::new(&object, Header::default()));
            Write { key: Key::new("configmaps", "default", name), expect: Expect::Absent, change }
        };
        let count = DELETED_TOGETHER * 2 + 2;
        let (store, tasks) = open(&StoreKind::Sqlite, folder.path()).await.unwrap();
        store.submit(Transaction { writes: (0..count).map(|it| put(&it.to_string())).collect() }).await.unwrap();
        tasks.stop(STOP_WITHIN).await;
        drop(store);
        assert_eq!(delete(&StoreKind::Sqlite, folder.path(), "configmaps", Some("default"), Some("7")).await.unwrap(), 1);
        assert_eq!(delete(&StoreKind::Sqlite, folder.path(), "configmaps", None, None).await.unwrap(), count - 1);
        assert!(sizes(&StoreKind::Sqlite, folder.path()).await.unwrap().is_empty());
        let engine = open_engine(&StoreKind::Sqlite, folder.path(), &Tasks::new()).await.unwrap();
        assert_eq!(engine.load().await.unwrap().batches.len(), 5);
    }
}
