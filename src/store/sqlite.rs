//! The journal in a SQLite file: one machine, one process.

use std::{borrow::Cow, path::Path, sync::Arc};

use bytes::Bytes;
use futures::FutureExt;
use sqlx::{
    AssertSqlSafe, Connection, Row, SqliteConnection,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqliteRow, SqliteSynchronous},
};
use tokio::sync::{Mutex, watch};

use super::{
    Key, Revision,
    engine::{Answer, Appended, Engine, Error, Loaded, RECENT_BYTES, RECENT_ROWS, RECENT_SECONDS, RETENTION_SECONDS, TRIM_ROWS, check_migrations},
    journal::{Batch, Entry},
};
use crate::meta::Json;

/// How long a file may still be held by a process that is ending.
const LOCK_WAIT: std::time::Duration = std::time::Duration::from_secs(1);

pub struct Sqlite {
    connection: Mutex<SqliteConnection>,
    /// Never used: no other process can append.
    wakeups: watch::Sender<()>,
}

impl Sqlite {
    /// Opens the file, or makes it, and locks it for this process.
    pub async fn open(path: &Path) -> Result<Arc<Self>, Error> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .page_size(8192)
            .journal_mode(SqliteJournalMode::Wal)
            .locking_mode(SqliteLockingMode::Exclusive)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(LOCK_WAIT);
        let in_use = |error: sqlx::Error| match error.as_database_error().and_then(|it| it.code()) {
            Some(code) if code == "5" => Error::InUse(path.display().to_string()),
            _ => database(error),
        };
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(in_use)?;
        let migrator = migrator();
        migrator.run(&mut connection).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(error) => in_use(error),
            other => Error::Database(other.to_string()),
        })?;
        let carried_out = sqlx::query_as("SELECT version, description FROM _sqlx_migrations ORDER BY version");
        check_migrations(migrator.iter().count(), carried_out.fetch_all(&mut connection).await.map_err(database)?)?;
        Ok(Arc::new(Self { connection: Mutex::new(connection), wakeups: watch::Sender::default() }))
    }
}

#[cfg(test)]
impl Sqlite {
    /// Makes all batches old enough to be dropped once they are folded.
    pub async fn age(&self) {
        let aged = sqlx::query("UPDATE journal SET at = 0").execute(&mut *self.connection.lock().await).await;
        aged.expect("aged");
    }
}

/// The batches after the fold, and some before: not too many rows, not too old, not too many bytes.
const LOAD_BATCHES: &str = "SELECT prev, last, batch, data FROM (
        SELECT prev, last, batch, data, at, sum(CASE WHEN prev < ?1 THEN length(data) ELSE 0 END) OVER (ORDER BY prev DESC) AS bytes FROM (
            SELECT * FROM (SELECT * FROM journal WHERE prev < ?1 ORDER BY prev DESC LIMIT ?2) UNION ALL SELECT * FROM journal WHERE prev >= ?1
        )
    ) WHERE last >= ?1 OR (at > unixepoch() - ?3 AND bytes <= ?4) ORDER BY prev";

fn migrator() -> Migrator {
    let sql = include_str!("../../migrations/sqlite/0001_journal.sql");
    let first = Migration::new(1, Cow::Borrowed("journal"), MigrationType::Simple, AssertSqlSafe(sql).into_sql_str(), false);
    Migrator { migrations: Cow::Owned(vec![first]), ignore_missing: true, ..Migrator::DEFAULT }
}

use sqlx::SqlSafeStr;

fn database(error: sqlx::Error) -> Error {
    Error::Database(error.to_string())
}

/// SQLite's integers are signed; revisions never come near 2^63.
fn signed(revision: Revision) -> i64 {
    revision as i64
}

fn batch(row: &SqliteRow) -> Result<Batch, Error> {
    let (prev, last): (i64, i64) = (row.try_get("prev").map_err(database)?, row.try_get("last").map_err(database)?);
    let data: &[u8] = row.try_get("data").map_err(database)?;
    Batch::decode(prev as u64, last as u64, row.try_get("batch").map_err(database)?, data)
}

fn object(row: &SqliteRow) -> Result<Entry, sqlx::Error> {
    let key = Key::new(row.try_get("res")?, row.try_get("ns")?, row.try_get("name")?);
    let (revision, schema): (i64, i64) = (row.try_get("rev")?, row.try_get("schema")?);
    let json = Json::from(Bytes::copy_from_slice(row.try_get::<&str, _>("val")?.as_bytes()));
    Ok(Entry { revision: revision as u64, key, is_delete: false, schema: schema as u64, json, before: Default::default() })
}

impl Engine for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    fn load(&self) -> Answer<'_, Loaded> {
        async {
            let mut connection = self.connection.lock().await;
            let revision: i64 =
                sqlx::query("SELECT rev FROM fold").fetch_one(&mut *connection).await.and_then(|it| it.try_get(0)).map_err(database)?;
            let rows = sqlx::query("SELECT res, ns, name, rev, schema, val FROM object").fetch_all(&mut *connection).await.map_err(database)?;
            let objects = rows.iter().map(object).collect::<Result<_, _>>().map_err(database)?;
            let query = sqlx::query(LOAD_BATCHES).bind(revision).bind(RECENT_ROWS).bind(RECENT_SECONDS).bind(RECENT_BYTES);
            let rows = query.fetch_all(&mut *connection).await.map_err(database)?;
            let batches = rows.iter().map(batch).collect::<Result<_, _>>()?;
            Ok(Loaded { revision: revision as u64, objects, batches })
        }
        .boxed()
    }

    fn tail(&self, revision: Revision) -> Answer<'_, Vec<Batch>> {
        async move {
            let mut connection = self.connection.lock().await;
            let query = sqlx::query("SELECT prev, last, batch, data FROM journal WHERE prev >= ?1 ORDER BY prev").bind(signed(revision));
            let rows = query.fetch_all(&mut *connection).await.map_err(database)?;
            rows.iter().map(batch).collect()
        }
        .boxed()
    }

    fn append<'a>(&'a self, batch: &'a Batch) -> Answer<'a, Appended> {
        async move {
            let mut connection = self.connection.lock().await;
            let query = sqlx::query("INSERT INTO journal (prev, last, batch, data) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (prev) DO NOTHING");
            let query = query.bind(signed(batch.prev)).bind(signed(batch.last)).bind(batch.id).bind(batch.encode());
            let done = query.execute(&mut *connection).await.map_err(database)?;
            Ok(if done.rows_affected() == 1 { Appended::Committed } else { Appended::Behind })
        }
        .boxed()
    }

    fn head(&self) -> Answer<'_, Revision> {
        async {
            let mut connection = self.connection.lock().await;
            let query = sqlx::query("SELECT coalesce((SELECT last FROM journal ORDER BY prev DESC LIMIT 1), 0)");
            let head: i64 = query.fetch_one(&mut *connection).await.and_then(|it| it.try_get(0)).map_err(database)?;
            Ok(head as u64)
        }
        .boxed()
    }

    fn wakeups(&self) -> watch::Receiver<()> {
        self.wakeups.subscribe()
    }

    fn fold<'a>(&'a self, _: Revision, to: Revision, changed: &'a [Entry]) -> Answer<'a, Revision> {
        async move {
            let mut connection = self.connection.lock().await;
            let mut transaction = connection.begin().await.map_err(database)?;
            for entry in changed {
                fold_entry(&mut transaction, entry).await.map_err(database)?;
            }
            sqlx::query("UPDATE fold SET rev = ?1 WHERE rev < ?1").bind(signed(to)).execute(&mut *transaction).await.map_err(database)?;
            // The last row stays: it is the end of the chain.
            let trim = sqlx::query(
                "DELETE FROM journal WHERE prev IN (SELECT prev FROM (SELECT prev, last, at FROM journal ORDER BY prev LIMIT ?1)
                    WHERE last < (SELECT rev FROM fold) AND at < unixepoch() - ?2)",
            );
            trim.bind(TRIM_ROWS).bind(RETENTION_SECONDS).execute(&mut *transaction).await.map_err(database)?;
            transaction.commit().await.map_err(database)?;
            Ok(to)
        }
        .boxed()
    }
}

async fn fold_entry(connection: &mut SqliteConnection, entry: &Entry) -> Result<(), sqlx::Error> {
    let key = &entry.key;
    let query = match entry.is_delete {
        true => sqlx::query("DELETE FROM object WHERE res = ?1 AND ns = ?2 AND name = ?3 AND rev < ?4"),
        false => sqlx::query(
            "INSERT INTO object (res, ns, name, rev, schema, val) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (res, ns, name) DO UPDATE SET rev = excluded.rev, schema = excluded.schema, val = excluded.val WHERE rev < excluded.rev",
        ),
    };
    let query = query.bind(&*key.resource).bind(&*key.namespace).bind(&*key.name).bind(signed(entry.revision));
    let query = if entry.is_delete { query } else { query.bind(signed(entry.schema)).bind(String::from_utf8_lossy(&entry.json.text()).into_owned()) };
    query.execute(connection).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_newer_file_is_used_unless_it_lacks_something() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("howdah.db");
        for (number, name, is_used) in [(1000, "more columns", true), (1001, "contract columns", false)] {
            let engine = Sqlite::open(&path).await.unwrap();
            let migration = sqlx::query("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (?1, ?2, true, x'', 0)");
            migration.bind(number).bind(name).execute(&mut *engine.connection.lock().await).await.unwrap();
            drop(engine);
            match Sqlite::open(&path).await {
                Ok(_) => assert!(is_used),
                Err(why) => assert!(!is_used && why.to_string().contains("needs (migration 1001, \"contract columns\"); run the newer one"), "{why}"),
            }
        }
    }
}
