//! The journal in Postgres: any number of servers, none of them a leader.
//!
//! An append is one statement that inserts the row after the one this server saw last; the primary key of the chain lets one of
//! several win. Who was behind takes an advisory lock, reads what the others wrote, and cannot be behind again. NOTIFY wakes the
//! other servers. Commits that may or may not have happened are found by their batch's id. See ARCHITECTURE.md, "The store".

mod address;
mod session;

use std::{
    sync::{
        Arc, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use sha2::{Digest, Sha256};
use sqlx::{
    PgConnection, Row,
    postgres::{PgListener, PgPoolOptions, PgRow},
};
use tokio::sync::{Mutex, watch};

pub use self::address::Address;
use self::session::{Identity, Seen, answer, database, run};
use super::{
    Key, Revision,
    engine::{Answer, Appended, CONTRACTION, Engine, Error, Loaded, RECENT_BYTES, RECENT_ROWS, RECENT_SECONDS, RETENTION_SECONDS, TRIM_ROWS},
    journal::{Batch, Entry},
};
use crate::{
    base::{Tasks, backoff::Backoff},
    meta::Json,
};

pub struct Postgres {
    address: Address,
    /// Tells this process's own notifications.
    nonce: String,
    append_lock: i64,
    fold_lock: i64,
    seen: std::sync::Mutex<Seen>,
    /// Where the last connection went, for the listener.
    host: AtomicUsize,
    /// The server that was last connected to waits for a standby at each commit.
    is_synchronous: AtomicBool,
    appends: Mutex<Slot>,
    reads: Mutex<Slot>,
    folds: Mutex<Slot>,
    /// Why this program may not use the database any more.
    outdated: OnceLock<String>,
    /// Below this no row is left, so that trimming need not step over dead ones.
    trimmed: AtomicI64,
    wakeups: watch::Sender<()>,
}

/// A connection that is made when it is needed, and again after an error.
#[derive(Default)]
struct Slot {
    connection: Option<PgConnection>,
    /// In a transaction that holds the lock of appends.
    is_claimed: bool,
}

impl Postgres {
    /// Connects, makes or migrates the schema, and listens until `tasks` stop.
    pub async fn open(address: Address, tasks: &Tasks) -> Result<Arc<Self>, Error> {
        let (mut connection, host) = session::connect(&address).await?;
        session::migrate(&mut connection, &address.schema).await?;
        session::close(connection).await;
        let engine = Arc::new(Self {
            nonce: uuid::Uuid::new_v4().simple().to_string(),
            append_lock: lock_key(&address.schema, "append"),
            fold_lock: lock_key(&address.schema, "fold"),
            seen: std::sync::Mutex::default(),
            host: AtomicUsize::new(host),
            is_synchronous: AtomicBool::default(),
            appends: Mutex::default(),
            reads: Mutex::default(),
            folds: Mutex::default(),
            outdated: OnceLock::new(),
            trimmed: AtomicI64::new(0),
            wakeups: watch::Sender::default(),
            address,
        });
        tasks.spawn("store-listener", listen(engine.clone()));
        tasks.spawn_vital("store-schema", attend(engine.clone()));
        Ok(engine)
    }

    fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see(&self, batch: &Batch) {
        let seen = Seen { prev: batch.prev, last: batch.last, batch: batch.id };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// The connection of a slot, taken out of it: an error or a cancelled call drops it, and whoever succeeds puts it back.
    async fn take(&self, slot: &mut Slot) -> Result<PgConnection, Error> {
        slot.is_claimed = false;
        self.outdated.get().map_or(Ok(()), |why| Err(Error::Outdated(why.clone())))?;
        match slot.connection.take() {
            Some(connection) => Ok(connection),
            None => self.connect().await,
        }
    }

    /// A new connection, to a server that still has what this process has seen.
    async fn connect(&self) -> Result<PgConnection, Error> {
        let (mut connection, host) = session::connect(&self.address).await?;
        let seen = self.seen();
        let identity = Identity::of(&mut connection, &seen).await?;
        // A standby that no commit waited for may lack revisions that another server has seen.
        let may_lack = identity.has_moved() && !self.is_synchronous.load(Ordering::Relaxed);
        if may_lack || !identity.continues(&seen) {
            return Err(Error::Broken(seen.last));
        }
        identity.keep_timeline(&mut connection).await?;
        self.note(&identity, host);
        Ok(connection)
    }

    /// Whether this program may still use the tables. It is asked again and again, and where the database refuses an append.
    async fn check(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let checked = session::check(connection).await;
        if let Err(Error::Outdated(why)) = &checked {
            self.outdated.get_or_init(|| why.clone());
        }
        checked
    }

    async fn attend_once(&self) -> Result<(), Error> {
        let mut slot = self.reads.lock().await;
        let mut connection = self.take(&mut slot).await?;
        self.check(&mut connection).await?;
        slot.connection = Some(connection);
        Ok(())
    }

    fn note(&self, identity: &Identity, host: usize) {
        self.is_synchronous.store(identity.is_synchronous, Ordering::Relaxed);
        self.host.store(host, Ordering::Relaxed);
    }

    async fn tail_by(&self, connection: &mut PgConnection, revision: Revision) -> Result<Vec<Batch>, Error> {
        let query = sqlx::query("SELECT prev, last, batch, data FROM journal WHERE prev >= $1 ORDER BY prev").bind(revision as i64);
        let rows = answer(query.fetch_all(connection)).await?;
        let batches: Vec<Batch> = rows.iter().map(batch).collect::<Result<_, _>>()?;
        if batches.first().is_some_and(|it| it.prev != revision) {
            return Err(Error::Broken(revision));
        }
        batches.last().inspect(|it| self.see(it));
        Ok(batches)
    }

    async fn insert(&self, connection: &mut PgConnection, batch: &Batch) -> Result<Appended, Error> {
        let query = sqlx::query(
            "WITH j AS (INSERT INTO journal (prev, last, batch, data)
                        SELECT $1, $2, $3, $4 FROM fold WHERE fold.rev <= $1 AND pg_try_advisory_xact_lock_shared($5)
                            AND NOT EXISTS (SELECT FROM _sqlx_migrations WHERE version > $8 AND starts_with(description, $9))
                        ON CONFLICT (prev) DO NOTHING RETURNING last)
             SELECT pg_notify($6, last || ' ' || $7) FROM j",
        );
        let query = query.bind(batch.prev as i64).bind(batch.last as i64).bind(batch.id).bind(batch.encode());
        let query = query.bind(self.append_lock).bind(&self.address.schema).bind(&self.nonce);
        let query = query.bind(session::MIGRATIONS.len() as i64).bind(CONTRACTION);
        let row = answer(query.fetch_optional(connection)).await?;
        Ok(row.map_or(Appended::Behind, |_| Appended::Committed))
    }

    /// Makes sure that no revision is given twice after the database lost some or was moved: leaves out what anyone may have seen.
    async fn settle(&self, connection: &mut PgConnection) -> Result<Identity, Error> {
        let seen = self.seen();
        run(connection, "BEGIN").await?;
        answer(sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(self.append_lock).execute(&mut *connection)).await?;
        let identity = Identity::of(connection, &seen).await?;
        let has_lost = !identity.continues(&seen) && identity.head <= seen.last;
        let may_lack = identity.has_moved() && !(self.is_synchronous.load(Ordering::Relaxed) && seen.last > 0 && identity.continues(&seen));
        if has_lost || may_lack {
            let jump = Batch::jump(identity.head, seen.last, uuid::Uuid::new_v4().as_u64_pair().0 as i64);
            tracing::warn!(from = identity.head, to = jump.last, "the database was restored or failed over; revisions are left out");
            self.insert(connection, &jump).await?;
        }
        identity.keep_timeline(connection).await?;
        run(connection, "COMMIT").await?;
        Ok(identity)
    }

    async fn load_by(&self, connection: &mut PgConnection) -> Result<Loaded, Error> {
        run(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let row = sqlx::query("SELECT rev FROM fold").fetch_one(&mut *connection).await.map_err(database)?;
        let revision = row.try_get::<i64, _>(0).map_err(database)? as u64;
        let rows = sqlx::query("SELECT res, ns, name, rev, schema, val FROM object").fetch_all(&mut *connection).await.map_err(database)?;
        let objects = rows.iter().map(object).collect::<Result<_, _>>().map_err(database)?;
        let query = sqlx::query(LOAD_BATCHES).bind(revision as i64).bind(RECENT_ROWS).bind(RECENT_SECONDS as f64).bind(RECENT_BYTES);
        let rows = query.fetch_all(&mut *connection).await.map_err(database)?;
        let batches: Vec<Batch> = rows.iter().map(batch).collect::<Result<_, _>>()?;
        run(connection, "COMMIT").await?;
        batches.last().inspect(|it| self.see(it));
        Ok(Loaded { revision, objects, batches })
    }

    async fn fold_by(&self, connection: &mut PgConnection, from: Revision, to: Revision, changed: &[Entry]) -> Result<Revision, Error> {
        run(connection, "BEGIN; SET LOCAL synchronous_commit TO off").await?;
        let query = sqlx::query("SELECT rev, pg_try_advisory_xact_lock($1) AS held FROM fold").bind(self.fold_lock);
        let row = answer(query.fetch_one(&mut *connection)).await?;
        let read = || Ok((row.try_get::<i64, _>("rev")? as u64, row.try_get::<bool, _>("held")?));
        let (mut folded, is_held) = read().map_err(database)?;
        self.check(connection).await?;
        // The lock may have come free after `rev` was read; the condition on the row finds that.
        if is_held && (from..to).contains(&folded) {
            let update = sqlx::query("UPDATE fold SET rev = $1 WHERE rev = $2").bind(to as i64).bind(folded as i64);
            if answer(update.execute(&mut *connection)).await?.rows_affected() == 1 {
                upsert(connection, changed.iter().filter(|it| !it.is_delete && it.revision > folded)).await?;
                remove(connection, changed.iter().filter(|it| it.is_delete && it.revision > folded)).await?;
                self.trim(connection, to).await?;
                folded = to;
            }
        }
        run(connection, "COMMIT").await?;
        Ok(folded)
    }

    /// Drops old batches that are folded. The last row stays: it is the end of the chain.
    async fn trim(&self, connection: &mut PgConnection, folded: Revision) -> Result<(), Error> {
        let query = sqlx::query(
            "DELETE FROM journal WHERE prev IN (SELECT prev FROM (SELECT prev, last, at FROM journal WHERE prev >= $1 ORDER BY prev LIMIT $2) oldest
                WHERE last < $3 AND at < now() - make_interval(secs => $4)) RETURNING last",
        );
        let query = query.bind(self.trimmed.load(Ordering::Relaxed)).bind(TRIM_ROWS).bind(folded as i64).bind(RETENTION_SECONDS as f64);
        let rows = answer(query.fetch_all(connection)).await?;
        let last = rows.iter().filter_map(|it| it.try_get::<i64, _>(0).ok()).max();
        last.inspect(|it| self.trimmed.store(*it, Ordering::Relaxed));
        Ok(())
    }
}

/// The batches after the fold, and some before: not too many rows, not too old, not too many bytes.
const LOAD_BATCHES: &str = "SELECT prev, last, batch, data FROM (
        SELECT prev, last, batch, data, at, sum(CASE WHEN prev < $1 THEN length(data) ELSE 0 END) OVER (ORDER BY prev DESC) AS bytes FROM (
            (SELECT * FROM journal WHERE prev < $1 ORDER BY prev DESC LIMIT $2) UNION ALL (SELECT * FROM journal WHERE prev >= $1)
        ) rows
    ) summed WHERE last >= $1 OR (at > now() - make_interval(secs => $3) AND bytes <= $4) ORDER BY prev";

/// How often it is seen whether a newer server has taken away what this one needs.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The number of an advisory lock: every server computes the same one.
fn lock_key(schema: &str, what: &str) -> i64 {
    let digest = Sha256::digest(format!("howdah/{schema}/{what}"));
    i64::from_be_bytes(std::array::from_fn(|at| digest[at]))
}

fn batch(row: &PgRow) -> Result<Batch, Error> {
    let (prev, last): (i64, i64) = (row.try_get("prev").map_err(database)?, row.try_get("last").map_err(database)?);
    let data: &[u8] = row.try_get("data").map_err(database)?;
    Batch::decode(prev as u64, last as u64, row.try_get("batch").map_err(database)?, data)
}

fn object(row: &PgRow) -> Result<Entry, sqlx::Error> {
    let key = Key::new(row.try_get("res")?, row.try_get("ns")?, row.try_get("name")?);
    let (revision, schema): (i64, i64) = (row.try_get("rev")?, row.try_get("schema")?);
    let json = Json::from(Bytes::copy_from_slice(row.try_get::<&str, _>("val")?.as_bytes()));
    Ok(Entry { revision: revision as u64, key, is_delete: false, schema: schema as u64, json, before: Default::default() })
}

async fn upsert(connection: &mut PgConnection, entries: impl Iterator<Item = &Entry>) -> Result<(), Error> {
    let (keys, mut schemas, mut values) = (Columns::default(), Vec::new(), Vec::new());
    let keys = entries.fold(keys, |keys, entry| {
        schemas.push(entry.schema as i64);
        values.push(String::from_utf8_lossy(&entry.json.text()).into_owned());
        keys.with(entry)
    });
    let query = sqlx::query(
        "INSERT INTO object (res, ns, name, rev, schema, val)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[])
         ON CONFLICT (res, ns, name) DO UPDATE SET rev = excluded.rev, schema = excluded.schema, val = excluded.val WHERE object.rev < excluded.rev",
    );
    let query = query.bind(keys.resources).bind(keys.namespaces).bind(keys.names).bind(keys.revisions).bind(schemas).bind(values);
    answer(query.execute(connection)).await.map(|_| ())
}

async fn remove(connection: &mut PgConnection, entries: impl Iterator<Item = &Entry>) -> Result<(), Error> {
    let keys = entries.fold(Columns::default(), Columns::with);
    let query = sqlx::query(
        "DELETE FROM object USING unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS gone (res, ns, name, rev)
         WHERE (object.res, object.ns, object.name) = (gone.res, gone.ns, gone.name) AND object.rev < gone.rev",
    );
    let query = query.bind(keys.resources).bind(keys.namespaces).bind(keys.names).bind(keys.revisions);
    answer(query.execute(connection)).await.map(|_| ())
}

/// Entries, column by column.
#[derive(Default)]
struct Columns {
    resources: Vec<String>,
    namespaces: Vec<String>,
    names: Vec<String>,
    revisions: Vec<i64>,
}

impl Columns {
    fn with(mut self, entry: &Entry) -> Self {
        self.resources.push(entry.key.resource.to_string());
        self.namespaces.push(entry.key.namespace.to_string());
        self.names.push(entry.key.name.to_string());
        self.revisions.push(entry.revision as i64);
        self
    }
}

/// Ends when this program may not use the database any more.
async fn attend(engine: Arc<Postgres>) {
    loop {
        tokio::time::sleep(CHECK_EVERY).await;
        if let Err(Error::Outdated(why)) = engine.attend_once().await {
            return tracing::error!(why, "this server writes nothing any more");
        }
    }
}

/// Wakes the store at what other servers append. What is lost while there is no connection is found by the next wake-up or probe.
async fn listen(engine: Arc<Postgres>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        if let Err(error) = listen_once(&engine, &mut backoff).await {
            tracing::debug!(%error, "listening ended; trying again");
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn listen_once(engine: &Postgres, backoff: &mut Backoff) -> Result<(), sqlx::Error> {
    let host = engine.address.hosts[engine.host.load(Ordering::Relaxed)].clone();
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(host);
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen(&engine.address.schema).await?;
    engine.wakeups.send_replace(());
    backoff.reset();
    while let Some(notification) = listener.try_recv().await? {
        let is_own = notification.payload().split_once(' ').is_some_and(|(_, nonce)| nonce == engine.nonce);
        if !is_own {
            engine.wakeups.send_replace(());
        }
    }
    Ok(())
}

impl Engine for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    fn load(&self) -> Answer<'_, Loaded> {
        async {
            let (mut appends, mut reads, mut folds) = (self.appends.lock().await, self.reads.lock().await, self.folds.lock().await);
            // What is connected may be a server that no longer counts.
            (*appends, *reads, *folds) = (Slot::default(), Slot::default(), Slot::default());
            let (mut connection, host) = session::connect(&self.address).await?;
            let identity = self.settle(&mut connection).await?;
            let loaded = self.load_by(&mut connection).await?;
            self.note(&identity, host);
            self.trimmed.store(0, Ordering::Relaxed);
            reads.connection = Some(connection);
            Ok(loaded)
        }
        .boxed()
    }

    fn tail(&self, revision: Revision) -> Answer<'_, Vec<Batch>> {
        async move {
            let mut slot = self.reads.lock().await;
            let mut connection = self.take(&mut slot).await?;
            let batches = self.tail_by(&mut connection, revision).await?;
            slot.connection = Some(connection);
            Ok(batches)
        }
        .boxed()
    }

    fn append<'a>(&'a self, batch: &'a Batch) -> Answer<'a, Appended> {
        async move {
            let mut slot = self.appends.lock().await;
            let is_claimed = slot.is_claimed;
            let mut connection = self.take(&mut slot).await?;
            let appended = self.insert(&mut connection, batch).await?;
            if is_claimed {
                run(&mut connection, "COMMIT").await?;
            }
            if appended == Appended::Committed {
                self.see(batch);
            }
            slot.connection = Some(connection);
            Ok(appended)
        }
        .boxed()
    }

    fn claim(&self, revision: Revision) -> Answer<'_, Vec<Batch>> {
        async move {
            let mut slot = self.appends.lock().await;
            let mut connection = self.take(&mut slot).await?;
            run(&mut connection, "BEGIN").await?;
            answer(sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(self.append_lock).execute(&mut connection)).await?;
            let batches = self.tail_by(&mut connection, revision).await?;
            if batches.is_empty() {
                self.check(&mut connection).await?;
            }
            *slot = Slot { connection: Some(connection), is_claimed: true };
            Ok(batches)
        }
        .boxed()
    }

    fn release(&self) -> Answer<'_, ()> {
        async {
            let mut slot = self.appends.lock().await;
            if slot.is_claimed {
                let mut connection = self.take(&mut slot).await?;
                run(&mut connection, "ROLLBACK").await?;
                slot.connection = Some(connection);
            }
            Ok(())
        }
        .boxed()
    }

    fn head(&self) -> Answer<'_, Revision> {
        async {
            let mut slot = self.reads.lock().await;
            let mut connection = self.take(&mut slot).await?;
            if self.is_synchronous.load(Ordering::Relaxed) {
                // A server that was fenced off cannot commit, so that it cannot answer with what is old.
                answer(sqlx::query(session::BARRIER).execute(&mut connection)).await?;
            }
            let query = sqlx::query("SELECT coalesce((SELECT last FROM journal ORDER BY prev DESC LIMIT 1), 0)");
            let row = answer(query.fetch_one(&mut connection)).await?;
            slot.connection = Some(connection);
            row.try_get::<i64, _>(0).map(|it| it as u64).map_err(database)
        }
        .boxed()
    }

    fn wakeups(&self) -> watch::Receiver<()> {
        self.wakeups.subscribe()
    }

    fn fold<'a>(&'a self, from: Revision, to: Revision, changed: &'a [Entry]) -> Answer<'a, Revision> {
        async move {
            let mut slot = self.folds.lock().await;
            let mut connection = self.take(&mut slot).await?;
            let folded = self.fold_by(&mut connection, from, to, changed).await?;
            slot.connection = Some(connection);
            Ok(folded)
        }
        .boxed()
    }
}
